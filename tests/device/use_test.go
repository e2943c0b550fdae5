// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// patience is how long a device may be in a test's hands. It is long: guests
// are slow.
const patience = 10 * time.Minute

// export exports v until the end of the test, and aborts the device if that
// does not come: whoever waits for a hung device cannot be killed.
func export(t testing.TB, e exporter, id string, v backend.Volume) backend.Device {
	t.Helper()
	d, err := e.Export(t.Context(), id, v)
	if err != nil {
		t.Fatal(err)
	}
	a, ok := d.(interface{ Abort() error })
	if !ok {
		t.Fatalf("%T cannot be aborted", d)
	}
	timer := time.AfterFunc(patience, func() { t.Errorf("device %s hangs, aborted: %v", id, a.Abort()) })
	t.Cleanup(func() {
		timer.Stop()
		if err := d.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return d
}

// remove removes d before the end of the test.
func remove(t testing.TB, d backend.Device) {
	t.Helper()
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// run runs a program that must be there and succeed, and returns what it said.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := tool(need.Command(t, name), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mount mounts a disk on a new directory, until unmount or the end of the
// test.
func mount(t *testing.T, disk, fstype string, flags uintptr, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount(disk, dir, fstype, flags, options); err != nil {
		t.Fatalf("mount %s as %s: %v", disk, fstype, err)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", fstype, err)
		}
		mounted = false
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// readAt reads n bytes of a file at off.
func readAt(name string, off int64, n int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	_, err = f.ReadAt(p, off)
	return p, errors.Join(err, f.Close())
}

// A lasting volume can be exported again after it was.
type lasting struct{ backend.Writer }

func (lasting) Close() error { return nil }

// newVolume returns an empty volume in memory that lasts as long as the test.
func newVolume(size int64) lasting { return lasting{backendtest.NewMemVolume(size)} }
