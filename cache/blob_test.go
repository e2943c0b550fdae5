// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

func TestReadAtFollowsTheContract(t *testing.T) {
	data := content(300_001) // the last block is short
	b := openBlob(t, openCache(t, cache.Options{}), "x", newSource(data))
	for range 2 { // from the source, then from disk
		for _, c := range []struct {
			name    string
			off     int64
			n, want int
			err     error
		}{
			{"start", 0, 100, 100, nil},
			{"over a block border", 16<<10 - 1, 2, 2, nil},
			{"over an extent border", 256<<10 - 1, 3, 3, nil},
			{"last byte", 300_000, 1, 1, nil},
			{"to the end exactly", 299_000, 1001, 1001, nil},
			{"over the end", 299_000, 2000, 1001, io.EOF},
			{"at the end", 300_001, 1, 0, io.EOF},
			{"behind the end", 1 << 60, 1, 0, io.EOF},
			{"nothing", 5, 0, 0, nil},
			{"negative offset", -1, 1, 0, fs.ErrInvalid},
		} {
			p := make([]byte, c.n)
			n, err := b.ReadAt(t.Context(), p, c.off)
			if n != c.want || !errors.Is(err, c.err) {
				t.Errorf("%s: got %d, %v; want %d, %v", c.name, n, err, c.want, c.err)
			}
			if n > 0 && string(p[:n]) != string(data[c.off:c.off+int64(n)]) {
				t.Errorf("%s: wrong bytes", c.name)
			}
		}
	}
}

func TestEmptyBlob(t *testing.T) {
	b := openBlob(t, openCache(t, cache.Options{}), "x", newSource(nil))
	if n, err := b.ReadAt(t.Context(), make([]byte, 1), 0); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("got %d, %v; want 0, EOF", n, err)
	}
	if err := b.Prefetch(t.Context(), 0, 10); err != nil {
		t.Error(err)
	}
	if err := b.Drop(t.Context(), 0, 10); err != nil {
		t.Error(err)
	}
}

func TestReadRange(t *testing.T) {
	data := content(3<<20 + 5)
	b := openBlob(t, openCache(t, cache.Options{}), "x", newSource(data))
	for _, c := range []struct {
		name   string
		off, n int64
		want   int64
		err    error
	}{
		{"all", 0, 3<<20 + 5, 3<<20 + 5, nil},
		{"middle", 12345, 1 << 20, 1 << 20, nil},
		{"nothing", 7, 0, 0, nil},
		{"over the end", 3 << 20, 100, 5, io.ErrUnexpectedEOF},
		{"behind the end", 4 << 20, 1, 0, io.ErrUnexpectedEOF},
	} {
		r, err := b.ReadRange(t.Context(), c.off, c.n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if !errors.Is(err, c.err) || int64(len(got)) != c.want {
			t.Errorf("%s: got %d bytes, %v; want %d, %v", c.name, len(got), err, c.want, c.err)
		}
		if len(got) > 0 && string(got) != string(data[c.off:c.off+c.want]) {
			t.Errorf("%s: wrong bytes", c.name)
		}
	}
	if _, err := b.ReadRange(t.Context(), -1, 1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("negative offset: got %v", err)
	}
}

func TestOneFetchForManyReaders(t *testing.T) {
	noGoroutines(t)
	data := content(1 << 20)
	gate := make(chan struct{})
	c := openCache(t, cache.Options{})
	newGated := func() *source {
		s := newSource(data)
		s.serve = func(context.Context, int64, int64) error { <-gate; return nil }
		return s
	}
	first, second := newGated(), newGated()
	blobs := []*cache.Blob{openBlob(t, c, "x", first), openBlob(t, c, "x", second)}

	const readers = 100
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() { wantBytes(t, blobs[i%2], data, int64(i)*1000, 4096) })
	}
	eventually(t, "all readers waiting", func() bool { return blobs[0].Waiting() == readers })
	close(gate)
	wg.Wait()
	got := append(first.asked(), second.asked()...)
	if diff := cmp.Diff([]span{{0, 256 << 10}}, got, cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestReadersAreReleasedAsBytesLand(t *testing.T) {
	data := content(256 << 10)
	src := newSource(data)
	src.piece = 32 << 10
	gate := make(chan struct{})
	src.serve = func(_ context.Context, off, _ int64) error {
		if off >= 128<<10 {
			<-gate
		}
		return nil
	}
	b := openBlob(t, openCache(t, cache.Options{}), "x", src)
	wantBytes(t, b, data, 100<<10, 28<<10) // returns although the rest has not come
	if got := b.Stats().FetchedBytes; got != 128<<10 {
		t.Errorf("%d bytes had landed, want 128 KiB", got)
	}
	close(gate)
	wantBytes(t, b, data, 0, 256<<10)
	if got := src.asked(); len(got) != 1 {
		t.Errorf("asked for %v, want one request", got)
	}
}

func TestCancelReleasesOnlyThatReader(t *testing.T) {
	data := content(256 << 10)
	src := newSource(data)
	gate := make(chan struct{})
	src.serve = func(context.Context, int64, int64) error { <-gate; return nil }
	c := openCache(t, cache.Options{})
	b := openBlob(t, c, "x", src)

	ctx, cancel := context.WithCancel(t.Context())
	cancelled, other := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := b.ReadAt(ctx, make([]byte, 10), 0)
		cancelled <- err
	}()
	eventually(t, "first reader waiting", func() bool { return b.Waiting() == 1 })
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 10), 0)
		other <- err
	}()
	eventually(t, "second reader waiting", func() bool { return b.Waiting() == 2 })
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled reader got %v", err)
	}
	close(gate)
	if err := <-other; err != nil {
		t.Errorf("other reader got %v", err)
	}
	if got := src.asked(); len(got) != 1 {
		t.Errorf("asked for %v, want one request", got)
	}
}

func TestFetchWithoutReadersFillsTheCache(t *testing.T) {
	data := content(256 << 10)
	src := newSource(data)
	gate := make(chan struct{})
	src.serve = func(context.Context, int64, int64) error { <-gate; return nil }
	c := openCache(t, cache.Options{})
	b := openBlob(t, c, "x", src)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := b.ReadAt(ctx, make([]byte, 10), 0)
		done <- err
	}()
	eventually(t, "reader waiting", func() bool { return b.Waiting() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("reader got %v", err)
	}
	close(gate)
	c.Quiesce()
	wantBytes(t, b, data, 0, 256<<10)
	if s := b.Stats(); s.Hits != 1 || s.Fetches != 1 {
		t.Errorf("got %+v; want one fetch, then a hit", s)
	}
}

func TestErrorReachesAllReadersAndNextReadTriesAnew(t *testing.T) {
	data := content(256 << 10)
	src := newSource(data)
	src.piece = 32 << 10
	broken := errors.New("no route")
	var fail atomic.Bool
	fail.Store(true)
	src.serve = func(_ context.Context, off, _ int64) error {
		if fail.Load() && off >= 96<<10 {
			return broken
		}
		return nil
	}
	c := openCache(t, cache.Options{})
	b := openBlob(t, c, "x", src)
	_, err := b.ReadAt(t.Context(), make([]byte, 10), 200<<10)
	if !errors.Is(err, broken) {
		t.Fatalf("got %v, want the source's error", err)
	}
	want := "fetch bytes [0, 262144) of blob " + dgst("x").String() + ": no route"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	fail.Store(false)
	c.Quiesce()
	src.asked()
	wantBytes(t, b, data, 0, 256<<10)
	if diff := cmp.Diff([]span{{96 << 10, 256 << 10}}, src.asked(), cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("what had landed was not kept (-want +got):\n%s", diff)
	}
}

// TestFailedFetchIsNotJoined: what landed of it may still wait for the disk.
func TestFailedFetchIsNotJoined(t *testing.T) {
	data := content(256 << 10)
	src := newSource(data)
	src.piece = 32 << 10
	src.serve = func(_ context.Context, off, _ int64) error {
		if off >= 96<<10 {
			return fetcher.ErrTemporary
		}
		return nil
	}
	c := openCache(t, cache.Options{})
	resume := c.StallWriter(t)
	defer resume()
	b := openBlob(t, c, "x", src)
	if _, err := b.ReadAt(t.Context(), make([]byte, 1), 200<<10); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v", err)
	}
	healthy := newSource(data)
	other := openBlob(t, c, "x", healthy)
	wantBytes(t, other, data, 0, 256<<10)
	if diff := cmp.Diff([]span{{96 << 10, 256 << 10}}, healthy.asked(), cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestShortStreamIsUnexpectedEOF(t *testing.T) {
	b := openBlob(t, openCache(t, cache.Options{}), "x", shortSource{newSource(content(1000))})
	if _, err := b.ReadAt(t.Context(), make([]byte, 1000), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want unexpected EOF", err)
	}
	wantBytes(t, b, content(1000), 0, 100)
}

// shortSource ends every stream 10 bytes early.
type shortSource struct{ *source }

func (s shortSource) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return s.source.ReadRange(ctx, off, n-10)
}

func TestFetchTimeoutIsTemporary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(content(1000))
		src.serve = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
		c, err := cache.Open(cache.Options{Dir: t.TempDir(), MinFree: -1, FetchTimeout: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer closeCache(t, c)
		b, err := c.Blob(dgst("x"), src)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		start := time.Now()
		_, err = b.ReadAt(t.Context(), make([]byte, 1), 0)
		if !errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a temporary failure that is not the reader's deadline", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("gave up after %s, want 3s", d)
		}
	})
}

func TestCloseFailsItsReadersAndNoOthers(t *testing.T) {
	noGoroutines(t)
	data := content(256 << 10)
	stuck, healthy := newSource(data), newSource(data)
	stuck.serve = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
	c := openCache(t, cache.Options{})
	closing, staying := openBlob(t, c, "x", stuck), openBlob(t, c, "x", healthy)

	errs := make(chan error, 1)
	go func() {
		_, err := closing.ReadAt(t.Context(), make([]byte, 10), 0)
		errs <- err
	}()
	eventually(t, "reader waiting", func() bool { return staying.Waiting() == 1 })
	var wg sync.WaitGroup
	wg.Go(func() { wantBytes(t, staying, data, 0, 4096) })
	eventually(t, "both waiting", func() bool { return staying.Waiting() == 2 })

	if err := closing.Close(); err != nil {
		t.Error(err)
	}
	if err := <-errs; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("reader of the closed blob got %v", err)
	}
	wg.Wait()
	if !stuck.isClosed() || healthy.isClosed() {
		t.Error("close must close its own source and no other")
	}
	if _, err := closing.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: got %v", err)
	}
}

func TestCloseOfCacheFailsReaders(t *testing.T) {
	noGoroutines(t)
	src := newSource(content(1000))
	src.serve = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
	c := openCache(t, cache.Options{})
	b := openBlob(t, c, "x", src)
	errs := make(chan error, 1)
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
		errs <- err
	}()
	eventually(t, "reader waiting", func() bool { return b.Waiting() == 1 })
	closeCache(t, c)
	if err := <-errs; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("reader got %v", err)
	}
	if _, err := c.Blob(dgst("y"), newSource(nil)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("new blob got %v", err)
	}
}

func TestDropFetchesAnew(t *testing.T) {
	good := content(256 << 10)
	bad := content(256 << 10)
	bad[100_000] ^= 1
	src := newSource(bad)
	c := openCache(t, cache.Options{})
	b := openBlob(t, c, "x", src)
	wantBytes(t, b, bad, 0, 256<<10)
	c.Quiesce()
	src.asked()

	src.data = good
	if err := b.Drop(t.Context(), 100_000, 1); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, b, good, 0, 256<<10)
	if diff := cmp.Diff([]span{{96 << 10, 112 << 10}}, src.asked(), cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("requests after drop (-want +got):\n%s", diff)
	}
}

func TestDropDuringFetchFetchesAnew(t *testing.T) {
	good, bad := content(64<<10), make([]byte, 64<<10)
	src := newSource(bad)
	src.piece = 16 << 10
	gate, reached := make(chan struct{}), make(chan struct{})
	src.serve = func(_ context.Context, off, _ int64) error {
		if off == 32<<10 {
			close(reached)
			<-gate
		}
		return nil
	}
	c := openCache(t, cache.Options{})
	b := openBlob(t, c, "x", src)
	old := make(chan error, 1)
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 64<<10), 0)
		old <- err
	}()
	<-reached
	if err := b.Drop(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	fresh := newSource(good)
	other := openBlob(t, c, "x", fresh)
	wantBytes(t, other, good, 0, 64<<10) // does not wait for the dropped fetch
	close(gate)
	if err := <-old; err != nil {
		t.Error(err)
	}
	c.Quiesce()
	eventually(t, "dropped fetch gone", func() bool { return c.Stats().InflightBytes == 0 })
	wantBytes(t, other, good, 0, 64<<10)
}

func TestPrefetch(t *testing.T) {
	data := content(9<<20 + 7)
	src := newSource(data)
	c := openCache(t, cache.Options{MaxExtent: 1 << 20})
	b := openBlob(t, c, "x", src)
	if err := b.Prefetch(t.Context(), 300<<10, 1<<62); err != nil {
		t.Fatal(err)
	}
	src.asked()
	wantBytes(t, b, data, 300<<10, 9<<20+7-300<<10)
	if s := b.Stats(); s.Hits != 1 || s.Misses != 0 {
		t.Errorf("got %+v; want a hit", s)
	}
	if err := b.Prefetch(t.Context(), -1, 5); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("negative offset: got %v", err)
	}
}

func TestPrefetchReportsErrors(t *testing.T) {
	src := newSource(content(1000))
	src.serve = func(context.Context, int64, int64) error { return fetcher.ErrNotFound }
	b := openBlob(t, openCache(t, cache.Options{}), "x", src)
	if err := b.Prefetch(t.Context(), 0, 1000); !errors.Is(err, fetcher.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	src.serve = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Prefetch(ctx, 0, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
