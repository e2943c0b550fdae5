// SPDX-License-Identifier: Apache-2.0

package download_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestShared: a layer is downloaded once, for all who have it open and for all
// places it belongs to.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		one, two, three := n.layerDir("1"), n.layerDir("2"), n.layerDir("3")
		var devices []*device
		for _, dir := range []string{one, one, two} {
			_, d := n.attach(dir)
			devices = append(devices, d)
		}
		time.Sleep(ages)
		_, late := n.attach(three)
		time.Sleep(ages)
		n.wantAsked(0, size)
		for _, dir := range []string{one, two, three} {
			n.wantFile(dir, true)
			if !os.SameFile(inode(t, commit(one)), inode(t, commit(dir))) {
				t.Errorf("%s has a copy", dir)
			}
		}
		for _, d := range append(devices, late) {
			d.want(0, size)
		}
		n.wantAsked(0, 0)
		_, file := n.attach(one)
		for _, d := range []*device{late, file} {
			if memo(d) != memo(devices[0]) {
				t.Error("readers do not share what they make of the bytes")
			}
		}
	})
}

func memo(d *device) *sync.Map {
	b, ok := d.Blob.(*download.Blob)
	if !ok {
		d.t.Fatalf("got a %T", d.Blob)
	}
	return b.Memo()
}

// TestOtherFileSystem gets a copy of what the node has.
func TestOtherFileSystem(t *testing.T) {
	far := tmpfs(t, 2*size)
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		near := n.layerDir("1")
		_, a := n.attach(near)
		_, b := n.attach(far)
		time.Sleep(ages)
		n.wantAsked(0, size)
		n.wantFile(near, true)
		n.wantFile(far, true)
		a.want(0, size)
		b.want(0, size)
	})
}

// TestCopyOfDamagedFile: what is found to be wrong when it is copied is not
// used any more.
func TestCopyOfDamagedFile(t *testing.T) {
	far := tmpfs(t, 2*size)
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		near := n.layerDir("1")
		_, a := n.attach(near)
		time.Sleep(ages)
		damage(t, commit(near))
		_, b := n.attach(far)
		time.Sleep(ages)
		n.wantFile(near, true)
		n.wantFile(far, true)
		n.wantAsked(0, 2*size)
		a.want(0, size)
		b.want(0, size)
	})
}

func tmpfs(t *testing.T, n int) string {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestNoRoom: what does not fit is not even fetched, and leaves nothing.
func TestNoRoom(t *testing.T) {
	dir := tmpfs(t, 2*size)
	filler := filepath.Join(dir, "filler")
	for _, minFree := range []int64{0, 2 * size} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, func(o *download.Options) { o.MinFree = minFree })
			if minFree == 0 {
				if err := os.WriteFile(filler, make([]byte, size+8192), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			sub := filepath.Join(dir, "layer")
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			before := free(t, dir)
			_, d := n.attach(sub)
			time.Sleep(ages)
			n.wantFile(sub, false)
			if now := free(t, dir); now != before || n.logged("no space left") != 1 {
				t.Errorf("%d bytes are free, were %d; logged %s", now, before, n.log.b.String())
			}
			n.wantAsked(0, 0)
			d.want(0, extent)
			n.wantAsked(extent, 0)

			if minFree == 0 {
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Hour)
				n.wantFile(sub, true)
			}
			d.detach()
			if err := os.RemoveAll(sub); err != nil {
				t.Error(err)
			}
		})
	}
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestDetachEndsDownload at whatever step; then the directory can be removed,
// and nothing is left of it.
func TestDetachEndsDownload(t *testing.T) {
	for _, after := range []time.Duration{0, delay, delay + 2*time.Second, delay + 5*time.Second, ages} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, nil)
			n.registry.serve = func(ctx context.Context, _, _ int64) error { return sleep(ctx, time.Second) }
			dir := n.layerDir("1")
			_, d := n.attach(dir)
			time.Sleep(after)
			d.detach()
			n.wantFile(dir, after == ages)
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			n.registry.asked()
			time.Sleep(ages)
			n.wantAsked(0, 0)
			if n.logged("level=WARN") > 0 {
				t.Errorf("logged %s", n.log.b.String())
			}
			if _, err := d.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("read after close: %v", err)
			}
		})
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestRemovalRace removes the directory while its layer is put in place, over
// and over: it never fails.
func TestRemovalRace(t *testing.T) {
	n := newNode(t, func(o *download.Options) { o.Delay = 0 })
	for i := range 200 {
		dir := n.layerDir("race")
		_, d := n.attach(dir)
		for turn := range i {
			d.want(turn, 1) // some time passes
		}
		d.detach()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOneOfTwoDetached: the download goes on for the other.
func TestOneOfTwoDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		n.registry.serve = func(ctx context.Context, _, _ int64) error { return sleep(ctx, time.Second) }
		one, two := n.layerDir("1"), n.layerDir("2")
		_, a := n.attach(one)
		_, b := n.attach(two)
		time.Sleep(delay + 2*time.Second)
		a.detach()
		if err := os.RemoveAll(one); err != nil {
			t.Error(err)
		}
		time.Sleep(ages)
		n.wantFile(two, true)
		n.wantAsked(0, size)
		b.want(0, size)
	})
}

// TestDirectoryGone is a failure that is told, not a directory made.
func TestDirectoryGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		dir := n.layerDir("1")
		_, d := n.attach(dir)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(ages)
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || n.logged("level=WARN") != 1 {
			t.Errorf("%v; logged %s", err, n.log.b.String())
		}
		n.wantAsked(0, 0)
		d.want(0, extent)
	})
}
