// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
)

// A source is a Blob that tells of its reads, and can damage them.
type source struct {
	memBlob
	reads   [][2]int64
	dropped [][2]int64
	bad     int // byte that is wrong until it is dropped; 0 for none
}

func (s *source) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	s.reads = append(s.reads, [2]int64{off, n})
	data := slices.Clone(s.memBlob)[off : off+n]
	if i := s.bad - int(off); s.bad > 0 && i >= 0 && i < len(data) {
		data[i] ^= 1
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (s *source) Drop(_ context.Context, off, n int64) error {
	s.dropped = append(s.dropped, [2]int64{off, n})
	if int64(s.bad) >= off && int64(s.bad) < off+n {
		s.bad = 0
	}
	return nil
}

// indexed returns content, its gzip file, and an index of many spans.
func indexed(t testing.TB) (content, z, index []byte) {
	t.Helper()
	content = sources(t, 1<<20)
	z = gzipped(t, content, 6)
	_, index = build(t, z, gzidx.Options{Span: 128 << 10})
	return content, z, index
}

// A read takes one of the source, and one more for a fault of a cache's copy,
// which heals.
func TestReadsOfTheSource(t *testing.T) {
	content, z, index := indexed(t)
	all, _ := points(t, index)
	src := &source{memBlob: z, bad: int(all[3].en) + 1000}
	b := open(t, src, index)
	p := make([]byte, all[4].de-all[2].de)
	if _, err := b.ReadAt(t.Context(), p, all[2].de+1); err != nil || !bytes.Equal(p, content[all[2].de+1:all[4].de+1]) {
		t.Fatal("wrong bytes", err)
	}
	start := func(i int) int64 { return all[i].en - int64(all[i].bits+7)/8 }
	reads := [][2]int64{{start(2), all[5].en - start(2)}, {start(3), all[5].en - start(3)}}
	dropped := [][2]int64{{start(3), all[4].en - start(3)}}
	if !slices.Equal(src.reads, reads) || !slices.Equal(src.dropped, dropped) {
		t.Errorf("read %v, want %v; dropped %v, want %v", src.reads, reads, src.dropped, dropped)
	}
}

// An endless is a source that gives empty blocks for ever.
type endless struct {
	memBlob
	started chan struct{}
	once    sync.Once
}

func (e *endless) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(e), nil
}

func (e *endless) Read(p []byte) (int, error) {
	e.once.Do(func() { close(e.started) })
	return copy(p, []byte{0, 0, 0, 0xff, 0xff}), nil
}

func TestCloseEndsDecoding(t *testing.T) {
	z := gzipped(t, []byte("content"), 6)
	_, index := build(t, z, gzidx.Options{})
	src := &endless{memBlob: z, started: make(chan struct{})}
	b := open(t, src, index)
	done := make(chan error)
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
		done <- err
	}()
	<-src.started
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read in flight: %v, want ErrClosed", err)
	}
}
