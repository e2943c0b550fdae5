// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// A cachedBlob has a copy of a blob until it is told to drop it.
type cachedBlob struct {
	memBlob
	copied memBlob // nil if there is none
	drops  [][2]int64
}

func (c *cachedBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if c.copied != nil {
		return c.copied.ReadAt(ctx, p, off)
	}
	return c.memBlob.ReadAt(ctx, p, off)
}

func (c *cachedBlob) Drop(_ context.Context, off, n int64) error {
	c.drops = append(c.drops, [2]int64{off, n})
	c.copied = nil
	return nil
}

// TestWrongCopyIsReadAgain: wrong bytes in a cache below are dropped, and the
// read is answered.
func TestWrongCopyIsReadAgain(t *testing.T) {
	want := source()
	z := goStream()(t, want)
	_, index := indexed(t, z, small)
	src := &cachedBlob{memBlob: z, copied: make(memBlob, len(z))}
	b := open(t, src, index)
	p := make([]byte, 250_000)
	if _, err := b.ReadAt(t.Context(), p, 100_000); err != nil || !bytes.Equal(p, want[100_000:350_000]) {
		t.Errorf("ReadAt: %v, or other bytes", err)
	}
	if len(src.drops) != 1 || src.drops[0][1] <= 0 || src.drops[0][1] >= int64(len(z)) {
		t.Errorf("dropped %v of %d bytes, want one part", src.drops, len(z))
	}
}

// TestChangedFile: a file that is not the one of the index is told from it, where
// only what differs is lost.
func TestChangedFile(t *testing.T) {
	want := source()
	z := goStream()(t, want)
	_, index := indexed(t, z, small)
	changed := bytes.Clone(z)
	clear(changed[len(z)/2:])
	b := open(t, memBlob(changed), index)
	p := make([]byte, len(want))
	n, err := b.ReadAt(t.Context(), p, 0)
	if !errors.Is(err, zstdidx.ErrChanged) || n == 0 || !bytes.Equal(p[:n], want[:n]) {
		t.Errorf("read %d bytes, %v; want those before the change, and ErrChanged", n, err)
	}
	if _, err := zstdidx.Open(t.Context(), memBlob(z[1:]), bytes.NewReader(index), int64(len(index))); !errors.Is(err, zstdidx.ErrChanged) {
		t.Errorf("file of another size: got %v, want ErrChanged", err)
	}
}

// A gatedBlob answers when it is let.
type gatedBlob struct {
	memBlob
	gate chan struct{}

	mu       sync.Mutex
	requests int // guarded by mu
}

func (g *gatedBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	g.mu.Lock()
	g.requests++
	g.mu.Unlock()
	select {
	case <-g.gate:
		return fetcher.ReadRange(ctx, g.memBlob, off, n)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestReadersShareADecode: who wants a span that another reader decodes waits
// for it, and takes over from one that gives up.
func TestReadersShareADecode(t *testing.T) {
	want := source()[:30_000]
	z := goStream()(t, want)
	_, index := indexed(t, z, small)
	synctest.Test(t, func(t *testing.T) {
		src := &gatedBlob{memBlob: z, gate: make(chan struct{})}
		b := open(t, src, index)
		first, giveUp := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() {
			_, err := b.ReadAt(first, make([]byte, 10), 0)
			gone <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				p := make([]byte, 1000)
				if _, err := b.ReadAt(t.Context(), p, int64(i)*1000); err != nil || !bytes.Equal(p, want[i*1000:][:1000]) {
					t.Errorf("reader %d: %v, or other bytes", i, err)
				}
			})
		}
		synctest.Wait()
		giveUp()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that gave up: %v", err)
		}
		synctest.Wait()
		close(src.gate)
		wg.Wait()
		if src.requests != 2 {
			t.Errorf("%d requests, want 2: of the one that gave up, and of one for the others", src.requests)
		}
	})
}

// TestDrop: what is dropped is read again.
func TestDrop(t *testing.T) {
	want := source()
	z := goStream()(t, want)
	_, index := indexed(t, z, small)
	src := &cachedBlob{memBlob: z}
	b := open(t, src, index)
	p := make([]byte, 1000)
	read := func() {
		t.Helper()
		if _, err := b.ReadAt(t.Context(), p, 5000); err != nil || !bytes.Equal(p, want[5000:6000]) {
			t.Fatalf("ReadAt: %v, or other bytes", err)
		}
	}
	read()
	if err := b.Drop(t.Context(), 5000, 1); err != nil || len(src.drops) != 1 {
		t.Fatalf("Drop: %v, dropped %v", err, src.drops)
	}
	src.copied = make(memBlob, len(z)) // wrong, so that it is seen who is asked
	read()
	if len(src.drops) != 2 {
		t.Error("a dropped span was not read again")
	}
	if err := b.Drop(t.Context(), b.Size(), 10); err != nil || len(src.drops) != 2 {
		t.Errorf("Drop behind the end: %v, dropped %v", err, src.drops)
	}
}

// TestKeptForAWhile: spans are kept while they are read, and not for long after.
func TestKeptForAWhile(t *testing.T) {
	z := goStream()(t, source())
	_, index := indexed(t, z, small)
	synctest.Test(t, func(t *testing.T) {
		src := &countingBlob{memBlob: z}
		b := open(t, src, index)
		read := func(after time.Duration) int {
			t.Helper()
			time.Sleep(after)
			if _, err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
				t.Fatal(err)
			}
			return src.requests
		}
		for range 5 {
			if n := read(6 * time.Second); n != 1 {
				t.Errorf("%d requests while the span was in use, want 1", n)
			}
		}
		if n := read(time.Minute); n != 2 {
			t.Errorf("%d requests after a minute, want 2", n)
		}
	})
}
