// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func TestEvictionKeepsToTheLimit(t *testing.T) {
	const limit = 4 << 20
	data := content(16 << 20)
	c := openCache(t, cache.Options{Size: limit})
	b := openBlob(t, c, "x", newSource(data))
	for off := int64(0); off < 16<<20; off += 1 << 20 {
		wantBytes(t, b, data, off, 1<<20)
		c.Quiesce()
		if used := c.Stats().UsedBytes; used > limit {
			t.Fatalf("%d bytes in use after %d read, limit %d", used, off, limit)
		}
	}
	if s := c.Stats(); s.EvictedBytes == 0 || s.UsedBytes < limit/2 {
		t.Errorf("got %+v", s)
	}
}

func TestBlobsNobodyHasOpenGoFirstOldestFirst(t *testing.T) {
	dir, data := t.TempDir(), content(1<<20)
	c := openCache(t, cache.Options{Dir: dir, Size: 4<<20 + 512<<10})
	for _, name := range []string{"first", "second", "third"} {
		b := openBlob(t, c, name, newSource(data))
		wantBytes(t, b, data, 0, 1<<20)
		c.Quiesce()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	used := openBlob(t, c, "first", newSource(data)) // and now the youngest
	src := newSource(data)
	wantBytes(t, used, data, 0, 4096)
	for _, name := range []string{"fourth", "fifth"} {
		b := openBlob(t, c, name, newSource(data))
		wantBytes(t, b, data, 0, 1<<20)
		c.Quiesce()
	}
	for _, f := range []struct {
		name string
		want bool
	}{{"first", true}, {"second", false}, {"third", true}, {"fourth", true}, {"fifth", true}} {
		if _, err := os.Stat(dataFile(dir, f.name)); (err == nil) != f.want {
			t.Errorf("blob %s: %v, want it there: %t", f.name, err, f.want)
		}
	}
	again := openBlob(t, c, "first", src)
	wantBytes(t, again, data, 0, 1<<20)
	if asked := src.asked(); len(asked) != 0 {
		t.Errorf("asked for %v of a blob in use", asked)
	}
}

func TestChunksReadLatelyStay(t *testing.T) {
	data := content(8 << 20)
	src := newSource(data)
	c := openCache(t, cache.Options{Size: 4<<20 + 256<<10})
	b := openBlob(t, c, "x", src)
	hot := func() {
		wantBytes(t, b, data, 0, 4096)
		c.Quiesce()
	}
	for off := int64(0); off < 8<<20; off += 256 << 10 {
		hot()
		wantBytes(t, b, data, off, 256<<10)
		c.Quiesce()
	}
	src.asked()
	hot()
	if asked := src.asked(); len(asked) != 0 {
		t.Errorf("asked for %v of a chunk read all the time", asked)
	}
}

func TestCacheSmallerThanOneExtent(t *testing.T) {
	data := content(1 << 20)
	c := openCache(t, cache.Options{Size: 100 << 10})
	b := openBlob(t, c, "x", newSource(data))
	wantBytes(t, b, data, 0, 1<<20)
	wantBytes(t, b, data, 0, 1<<20)
	c.Quiesce()
	if s := c.Stats(); s.DroppedBytes == 0 || s.UsedBytes > 100<<10 {
		t.Errorf("got %+v", s)
	}
}

func TestMinFreeStopsWrites(t *testing.T) {
	data := content(1 << 20)
	c := openCache(t, cache.Options{MinFree: 1 << 60})
	b := openBlob(t, c, "x", newSource(data))
	for range 2 {
		wantBytes(t, b, data, 0, 1<<20)
		c.Quiesce()
	}
	if s := c.Stats(); s.WrittenBytes != 0 || s.DroppedBytes != 2<<20 {
		t.Errorf("got %+v", s)
	}
}

// TestReadsSurviveEvictionUnderLoad has readers, evictions, drops and
// prefetches meet in a cache far too small.
func TestReadsSurviveEvictionUnderLoad(t *testing.T) {
	noGoroutines(t)
	data := content(8 << 20)
	c := openCache(t, cache.Options{Size: 1 << 20, BlockSize: 4096, ExtentSize: 32 << 10, MaxExtent: 64 << 10, MaxInflightBytes: 256 << 10})
	a, b := openBlob(t, c, "x", newSource(data)), openBlob(t, c, "y", newSource(data))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 150 {
				blob := [...]*cache.Blob{a, b}[r.IntN(2)]
				off, n := r.Int64N(1<<20)*7, 1+r.Int64N(40<<10)
				wantBytes(t, blob, data, off, n)
			}
		})
	}
	wg.Go(func() {
		for off := int64(0); off < 4<<20; off += 256 << 10 {
			if err := a.Prefetch(t.Context(), off, 256<<10); err != nil {
				t.Errorf("prefetch: %v", err)
			}
			_ = b.Drop(t.Context(), off, 512<<10)
		}
	})
	wg.Wait()
	if s := c.Stats(); s.EvictedBytes == 0 || s.Hits == 0 {
		t.Errorf("nothing was put to the test: %+v", s)
	}
}

// tmpfs mounts a file system of n bytes for the test.
func tmpfs(t *testing.T, n int64) string {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func TestDiskFullCostsNoRead(t *testing.T) {
	dir := tmpfs(t, 2<<20)
	data := content(6 << 20)
	c := openCache(t, cache.Options{Dir: dir}) // believes in 20 GiB
	b := openBlob(t, c, "x", newSource(data))
	for range 2 {
		for off := int64(0); off < 6<<20; off += 256 << 10 {
			wantBytes(t, b, data, off, 256<<10)
			c.Quiesce()
		}
	}
	if s := c.Stats(); s.WrittenBytes == 0 || s.EvictedBytes == 0 {
		t.Errorf("a full disk must be used as far as it goes: %+v", s)
	}

	// Now somebody else takes all of it.
	if err := os.WriteFile(dir+"/other", content(4<<20), 0o600); err == nil {
		t.Fatal("the disk was not full")
	}
	other := openBlob(t, c, "y", newSource(data))
	for off := int64(0); off < 6<<20; off += 256 << 10 {
		wantBytes(t, other, data, off, 256<<10)
	}
}

func TestReadOnlyDiskCostsNoRead(t *testing.T) {
	dir := tmpfs(t, 2<<20)
	data := content(1 << 20)
	c := openCache(t, cache.Options{Dir: dir})
	// The lock file, open for writing, bars a remount: mount over it instead.
	if err := unix.Mount(t.TempDir(), dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b := openBlob(t, c, "x", newSource(data))
	wantBytes(t, b, data, 0, 1<<20)
	c.Quiesce()
	wantBytes(t, b, data, 0, 1<<20)
	c.Quiesce()
	if s := c.Stats(); s.WriteErrors == 0 || s.LastDiskError == "" {
		t.Errorf("the cause is not to be seen: %+v", s)
	}
	if err := b.Prefetch(t.Context(), 0, 1<<20); !errors.Is(err, unix.EROFS) {
		t.Errorf("prefetch that cannot be kept: got %v", err)
	}
}

func TestFilesCutBehindOurBack(t *testing.T) {
	dir, data := t.TempDir(), content(1<<20)
	c := openCache(t, cache.Options{Dir: dir})
	b := openBlob(t, c, "x", newSource(data))
	wantBytes(t, b, data, 0, 1<<20)
	c.Quiesce()
	if err := os.Truncate(dataFile(dir, "x"), 500_000); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, b, data, 0, 1<<20)
	if s := c.Stats(); s.ReadErrors == 0 || s.LastDiskError == "" {
		t.Errorf("the cause is not to be seen: %+v", s)
	}
}

func TestSlowDiskDelaysNoRead(t *testing.T) {
	data := content(4 << 20)
	c := openCache(t, cache.Options{MaxExtent: 256 << 10, MaxInflightBytes: 1 << 20})
	resume := c.StallWriter(t)
	defer resume()
	b := openBlob(t, c, "x", newSource(data))
	for range 2 {
		for off := int64(0); off < 4<<20; off += 256 << 10 {
			wantBytes(t, b, data, off, 256<<10)
		}
	}
	if s := c.Stats(); s.DroppedBytes == 0 {
		t.Errorf("got %+v; want writes dropped", s)
	}
}

func TestDemandGoesBeforePrefetch(t *testing.T) {
	data := content(16 << 20)
	src := newSource(data)
	gate, stuck := make(chan struct{}), make(chan struct{}, 64)
	src.serve = func(ctx context.Context, off, _ int64) error {
		if off >= 8<<20 {
			return nil // demand
		}
		stuck <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	c := openCache(t, cache.Options{MaxExtent: 256 << 10, MaxInflightBytes: 1 << 20})
	b := openBlob(t, c, "x", src)
	done := make(chan error, 1)
	go func() { done <- b.Prefetch(t.Context(), 0, 8<<20) }()
	<-stuck
	for off := int64(8 << 20); off < 16<<20; off += 256 << 10 {
		wantBytes(t, b, data, off, 4096)
	}
	if got := src.asked(); got[0].off != 0 || got[1].off < 8<<20 {
		t.Errorf("a stuck prefetch took more than its quarter: %v", got)
	}
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
