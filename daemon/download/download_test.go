// SPDX-License-Identifier: Apache-2.0

package download_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
)

// TestDownload: after the delay, all that the cache lacks is fetched, and from
// then on nothing.
func TestDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		dir := n.layerDir("1")
		v, d := n.attach(dir)
		d.want(1<<20, extent)
		n.wantAsked(extent, 0)
		time.Sleep(delay - 1)
		n.wantAsked(0, 0)
		if local, total := v.Progress(); local != 0 || total != size {
			t.Errorf("%d of %d bytes are local", local, total)
		}
		time.Sleep(ages)
		n.wantFile(dir, true)
		n.wantAsked(0, size-extent)
		if local, total := v.Progress(); local != size || total != size {
			t.Errorf("%d of %d bytes are local", local, total)
		}
		d.want(0, size)
		n.wantAsked(0, 0)
		want := download.Stats{Layers: 1, FetchedBytes: size - extent, CachedBytes: extent}
		if got := n.Stats(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if c := n.cache.Stats(); c.Blobs != 0 || c.WrittenBytes != extent {
			t.Errorf("the cache has %+v", c)
		}
		if n.logged("layer downloaded") != 1 || n.logged("level=") != 1 {
			t.Errorf("logged: %s", n.log.b.String())
		}
		d.detach()

		v, d = n.attach(dir)
		d.want(0, size)
		if local, total := v.Progress(); local != size || total != size {
			t.Errorf("%d of %d bytes are local", local, total)
		}
		time.Sleep(ages)
		n.wantAsked(0, 0)
	})
}

// TestOff downloads nothing.
func TestOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, func(o *download.Options) { o.Off = true })
		dir := n.layerDir("1")
		n.attach(dir)
		time.Sleep(ages)
		n.wantFile(dir, false)
		n.wantAsked(0, 0)
	})
}

// TestReadWhileSwapped: a read that waits for the source when the layer comes
// to be local is answered by the file.
func TestReadWhileSwapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, func(o *download.Options) { o.Delay = time.Second })
		_, d := n.attach(n.layerDir("1"))
		n.registry.set(func() { n.registry.serve = hangReaders })
		d.want(2<<20, extent) // for whose fetch the cache would wait a minute
		synctest.Wait()       // for the download to be over
		if got := n.Stats(); got.Layers != 1 || got.FetchedBytes != size {
			t.Errorf("got %+v", got)
		}
	})
}

func hangReaders(ctx context.Context, _, _ int64) error {
	if limit.Of(ctx) == limit.Background {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// TestRate: downloads keep to the rate of their class, and readers do not.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 10_000
		n := newNode(t, nil)
		limited := limit.New(n.registry, limit.Options{BackgroundRate: rate})
		n.blobs = fetcher.Schemes{"http": n.cache.Opener(limited), "file": file.Opener{}}
		o := download.Options{Blobs: n.blobs, Logger: slog.New(slog.DiscardHandler), Extent: extent}
		n.Downloader = download.New(o)
		_, d := n.attach(n.layerDir("1"))
		time.Sleep(size/rate*time.Second - 10*time.Second) // it may be a little ahead
		if got := n.Stats(); got.Layers != 0 || got.FetchedBytes < size*8/10 {
			t.Errorf("got %+v before its time", got)
		}
		start := time.Now()
		d.want(0, extent)
		if took := time.Since(start); took > 0 {
			t.Errorf("a reader waited %v", took)
		}
		time.Sleep(20 * time.Second)
		if got := n.Stats(); got.Layers != 1 {
			t.Errorf("got %+v when it should be done", got)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestParallel: as many layers are downloaded at once as are allowed.
func TestParallel(t *testing.T) {
	for _, parallel := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, func(o *download.Options) { o.Parallel, o.Jitter = parallel, time.Minute })
			most := int64(0)
			n.registry.serve = func(context.Context, int64, int64) error {
				n.registry.set(func() { most = max(most, n.Stats().Active) })
				time.Sleep(time.Minute)
				return nil
			}
			for seed := range uint64(3) {
				ref, content := n.registry.add(seed)
				n.attachLayer(n.layerDir(fmt.Sprint(seed)), ref, content)
			}
			time.Sleep(ages)
			if got := n.Stats(); got.Layers != 3 || most != int64(parallel) {
				t.Errorf("got %+v, %d at once, want %d", got, most, parallel)
			}
		})
	}
}

// TestWrongBytes are never put in place, dropped from the cache, told once and
// fetched again; when they stay wrong, not for ever.
func TestWrongBytes(t *testing.T) {
	for _, mended := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, func(o *download.Options) { o.Tries = 3 })
			dir := n.layerDir("1")
			_, d := n.attach(dir)
			n.registry.set(func() { n.registry.lies = true })
			if _, err := d.ReadAt(t.Context(), make([]byte, extent), 0); err != nil { // and the cache has them
				t.Fatal(err)
			}
			time.Sleep(delay + pause/2)
			n.wantFile(dir, false)
			if got := n.Stats(); got.Mismatches != 1 || got.Failures != 1 || got.CachedBytes != extent {
				t.Errorf("got %+v", got)
			}
			n.registry.set(func() { n.registry.lies = !mended })
			n.wantAsked(extent, size-extent)
			time.Sleep(ages)
			n.wantFile(dir, mended)
			if mended {
				n.wantAsked(0, size) // all of it: what was cached is not trusted any more
				d.want(0, extent)
			} else {
				n.wantAsked(0, 2*size)
			}
			if n.logged(n.registry.ref.Digest.String()) != 1 && !mended || n.logged("level=WARN") != 1 {
				t.Errorf("logged: %s", n.log.b.String())
			}
		})
	}
}

// TestOutage: a download goes on where it was cut off, however long that takes.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, func(o *download.Options) { o.Tries = 1 })
		dir := n.layerDir("1")
		n.attach(dir)
		n.registry.set(func() {
			n.registry.serve = func(_ context.Context, off, _ int64) error {
				if off >= 2<<20 {
					return fmt.Errorf("away: %w", fetcher.ErrTemporary)
				}
				return nil
			}
		})
		time.Sleep(ages)
		n.wantFile(dir, false)
		failed := n.Stats().Failures
		if failed < 90 || n.logged("away") != 1 {
			t.Errorf("%d failures, logged %s", failed, n.log.b.String())
		}
		n.wantAsked(0, 2<<20+extent*failed)
		n.registry.set(func() { n.registry.serve = nil })
		time.Sleep(2 * time.Hour)
		n.wantFile(dir, true)
		n.wantAsked(0, size-2<<20)
	})
}

// TestTricklingSource holds up its own layer only.
func TestTricklingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		n.registry.serve = func(ctx context.Context, _, _ int64) error {
			<-ctx.Done()
			return ctx.Err()
		}
		slow, fast := n.layerDir("slow"), n.layerDir("fast")
		n.attach(slow)
		time.Sleep(2 * delay)
		ref, content := n.registry.add(2)
		_, d := n.attachLayer(fast, ref, content)
		n.registry.set(func() { n.registry.serve = nil })
		time.Sleep(30 * time.Minute)
		if _, err := os.Stat(commit(fast)); err != nil {
			t.Error(err)
		}
		n.wantFile(slow, true) // whose second try it was
		d.want(0, size)
		if n.logged("not complete after") != 1 {
			t.Errorf("logged %s", n.log.b.String())
		}
	})
}
