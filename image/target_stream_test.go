// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
)

// A slowTarget is the one blob there is, whose bytes from the stop-th on are not
// sent before it goes on.
type slowTarget struct {
	data  []byte
	stop  int64
	on    chan struct{}
	asked atomic.Int32
}

func (s *slowTarget) Open(context.Context, fetcher.Ref) (fetcher.Blob, error) { return s, nil }
func (s *slowTarget) Size() int64                                             { return int64(len(s.data)) }
func (s *slowTarget) Close() error                                            { return nil }

func (s *slowTarget) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	r, err := s.ReadRange(ctx, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	return io.ReadFull(r, p)
}

func (s *slowTarget) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.asked.Add(1)
	sent := min(max(s.stop-off, 0), n)
	r := bytes.NewReader(s.data[off : off+n])
	return io.NopCloser(io.MultiReader(io.LimitReader(r, sent), goingOn{ctx, s.on}, r)), nil
}

// A goingOn is empty, but that takes until a channel is closed.
type goingOn struct {
	ctx context.Context
	on  chan struct{}
}

func (g goingOn) Read([]byte) (int, error) {
	select {
	case <-g.on:
		return 0, io.EOF
	case <-g.ctx.Done():
		return 0, g.ctx.Err()
	}
}

// slowVolume opens a volume of content in a slow target behind a cache.
func slowVolume(t *testing.T, change func(s *slowTarget)) (i *image.Image, content []byte, s *slowTarget) {
	t.Helper()
	content = []byte(hex.EncodeToString(fetchertest.Content(1<<20, 7)))
	v, target := farTarget(t, fetchertest.NewRegistry(t, fetchertest.Options{}), content)
	s = &slowTarget{data: slices.Clone(target), on: make(chan struct{})}
	change(s)
	c, err := cache.Open(cache.Options{Dir: t.TempDir(), MinFree: -1})
	must(t, err)
	i, err = image.Open(t.Context(), v, fetcher.Schemes{"http": c.Opener(s), "file": file.Opener{}})
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(i.Close(), c.Close())) })
	return i, content, s
}

// TestTargetIsReadAsItComes: what has come of a span is read through the cache
// while the rest of it has not, and is not asked for again.
func TestTargetIsReadAsItComes(t *testing.T) {
	i, content, s := slowVolume(t, func(s *slowTarget) { s.stop = int64(len(s.data)) / 4 })
	p := make([]byte, 4096)
	for _, off := range []int64{0, 200_000} { // of 1 MiB
		_, err := i.ReadAt(t.Context(), p, off)
		must(t, err)
		if !bytes.Equal(p, content[off:][:len(p)]) {
			t.Errorf("wrong bytes at %d", off)
		}
	}
	close(s.on)
	p = make([]byte, len(content))
	_, err := i.ReadAt(t.Context(), p, 0)
	must(t, err)
	if !bytes.Equal(p, content) {
		t.Error("wrong bytes once all have come")
	}
	if n := s.asked.Load(); n > 2 { // spans
		t.Errorf("the target was read %d times", n)
	}
}

// TestFaultInTarget: what lies before a fault in a span is read, and kept; behind
// it there are errors, and no wrong byte.
func TestFaultInTarget(t *testing.T) {
	i, content, s := slowVolume(t, func(s *slowTarget) {
		s.data[len(s.data)/4] ^= 4
		close(s.on)
	})
	p := make([]byte, 4096)
	for range 2 {
		_, err := i.ReadAt(t.Context(), p, 200_000)
		must(t, err)
		if !bytes.Equal(p, content[200_000:][:len(p)]) {
			t.Error("wrong bytes before the fault")
		}
		if _, err := i.ReadAt(t.Context(), p, 900_000); !errors.Is(err, gzidx.ErrChanged) {
			t.Errorf("behind the fault: got %v, want ErrChanged", err)
		}
	}
	asked := s.asked.Load()
	if _, err := i.ReadAt(t.Context(), p, 100_000); err != nil || s.asked.Load() != asked {
		t.Errorf("what was read before a fault was asked for again, %v", err)
	}
}
