// SPDX-License-Identifier: Apache-2.0

package download_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
)

// TestDamage: a file whose bytes have changed is removed, the read is answered
// by the source, and the layer downloaded again; not for ever.
func TestDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tries = 3
		n := newNode(t, func(o *download.Options) { o.Tries = tries })
		dir := n.layerDir("1")
		_, a := n.attach(dir)
		_, b := n.attach(dir)
		for i := range tries {
			time.Sleep(ages)
			n.wantFile(dir, true)
			n.wantAsked(0, size)
			damage(t, commit(dir))
			if err := fetcher.Drop(t.Context(), a.Blob, 100, 100); err != nil {
				t.Fatal(err)
			}
			n.wantFile(dir, false)
			for _, d := range []*device{a, b} {
				d.want(i*extent, extent)
			}
			n.wantAsked(extent, 0)
			if err := fetcher.Drop(t.Context(), b.Blob, int64(i*extent), extent); err != nil { // of the cache
				t.Fatal(err)
			}
		}
		time.Sleep(ages)
		n.wantFile(dir, false)
		n.wantAsked(0, 0)
		if got := n.Stats(); got.Damaged != tries || got.Layers != tries {
			t.Errorf("got %+v", got)
		}
		_, c := n.attach(dir)
		time.Sleep(ages)
		n.wantFile(dir, true)
		c.want(0, size)
	})
}

// damage changes a byte.
func damage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var p [1]byte
	_, err = f.ReadAt(p[:], 150)
	p[0] ^= 1
	_, werr := f.WriteAt(p[:], 150)
	if err := errors.Join(err, werr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestUnreadableFile, such as one cut short, is as good as damaged: also one
// that an earlier process has downloaded, and with downloads off.
func TestUnreadableFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, func(o *download.Options) { o.Off = true })
		dir := n.layerDir("1")
		if err := os.WriteFile(commit(dir), n.registry.content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, d := n.attach(dir)
		d.want(0, size)
		n.wantAsked(0, 0)
		if err := os.Truncate(commit(dir), 1000); err != nil {
			t.Fatal(err)
		}
		d.want(500, 1000)
		n.wantFile(dir, false)
	})
}

// TestDamagedFileStays where it cannot be removed; it is not read any more.
func TestDamagedFileStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		dir := n.layerDir("1")
		_, d := n.attach(dir)
		time.Sleep(ages)
		if err := errors.Join(os.Remove(commit(dir)), os.MkdirAll(commit(dir)+"/full", 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := fetcher.Drop(t.Context(), d.Blob, 0, 1); err != nil {
			t.Error(err)
		}
		n.wantAsked(0, size)
		d.want(0, extent)
		n.wantAsked(extent, 0)
		time.Sleep(ages)
		if n.logged("directory not empty") != 1 || n.logged("not a regular file") != 1 {
			t.Errorf("logged %s", n.log.b.String())
		}
	})
}

// TestUnpackedLayer is another file than the blob, and left alone.
func TestUnpackedLayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		dir := n.layerDir("1")
		content := []byte("the layer without its tar")
		if err := os.WriteFile(commit(dir), content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, d := n.attach(dir)
		fetchertest.Want(t, d, content, 0, len(content))
		if err := fetcher.Drop(t.Context(), d.Blob, 0, 1); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("drop: %v", err)
		}
		time.Sleep(ages)
		if _, err := os.Stat(commit(dir)); err != nil {
			t.Error(err)
		}
	})
}

// TestFileTurnsUp while the download waits: it is used.
func TestFileTurnsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		dir := n.layerDir("1")
		v, d := n.attach(dir)
		if err := os.WriteFile(commit(dir), n.registry.content, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(ages)
		if local, _ := v.Progress(); local != size {
			t.Errorf("%d bytes are local", local)
		}
		d.want(0, size)
		n.wantAsked(0, 0)
	})
}

// TestOtherFileInPlace is not touched.
func TestOtherFileInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		dir := n.layerDir("1")
		_, d := n.attach(dir)
		if err := os.WriteFile(commit(dir), []byte("other"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(ages)
		if got, err := os.ReadFile(commit(dir)); err != nil || string(got) != "other" {
			t.Errorf("got %q, %v", got, err)
		}
		n.wantAsked(0, 0)
		d.want(0, extent)
	})
}

// TestReadsNeverWrong reads from many goroutines while files come, rot and go.
func TestReadsNeverWrong(t *testing.T) {
	n := newNode(t, func(o *download.Options) { o.Delay, o.Pause, o.Tries = 0, time.Microsecond, 1<<30 })
	one, two := n.layerDir("1"), n.layerDir("2")
	var volumes []*download.Volume
	var devices []*device
	for _, dir := range []string{one, one, two} {
		v, d := n.attach(dir)
		volumes, devices = append(volumes, v), append(devices, d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i, d := range devices {
		wg.Go(func() {
			for off := i; ctx.Err() == nil; off = (off + 77_777) % (size - 5000) {
				d.want(off, 5000)
			}
		})
	}
	for i := range 30 {
		for _, v := range volumes {
			for local := int64(0); local < size; local, _ = v.Progress() {
				runtime.Gosched()
			}
		}
		if err := fetcher.Drop(t.Context(), devices[i%3].Blob, 0, 1); err != nil {
			t.Error(err)
		}
	}
}
