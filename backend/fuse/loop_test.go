// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// export exports v, and aborts the device if the test outlives its patience:
// whoever waits for a hung device cannot be killed.
func export(t testing.TB, e *fuse.Exporter, id string, v backend.Volume) *fuse.Device {
	t.Helper()
	d, err := e.Export(t.Context(), id, v)
	if err != nil {
		t.Fatal(err)
	}
	dev, ok := d.(*fuse.Device)
	if !ok {
		t.Fatalf("Export returned a %T", d)
	}
	timer := time.AfterFunc(3*time.Minute, func() {
		t.Errorf("device %s hangs, aborted: %v", id, dev.Abort())
	})
	t.Cleanup(func() { timer.Stop() })
	return dev
}

// attachLoop puts a loop device over file until release, or the last user
// after it, is done with it.
func attachLoop(t testing.TB, file string, flags uint32) (device string, release func()) {
	t.Helper()
	need.Loop(t)
	flag := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		flag = os.O_RDONLY
	}
	back, err := os.OpenFile(file, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	config := &unix.LoopConfig{Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: flags | unix.LO_FLAGS_AUTOCLEAR}}
	for {
		loop := freeLoop(t)
		err := unix.IoctlLoopConfigure(int(loop.Fd()), config)
		if err == nil {
			t.Cleanup(func() { _ = loop.Close() })
			return loop.Name(), func() { _ = loop.Close() }
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			t.Fatalf("configure %s on %s: %v", loop.Name(), file, err)
		}
	}
}

func freeLoop(t testing.TB) *os.File {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Fatal(err)
	}
	loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return loop
}

// mount mounts source on a new directory until release or the end of the test.
func mount(t testing.TB, source, fstype string, flags uintptr, data string) (dir string, release func()) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount(source, dir, fstype, flags, data); err != nil {
		t.Fatalf("mount %s on %s: %v", fstype, source, err)
	}
	mounted := true
	release = func() {
		if !mounted {
			return
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", fstype, err)
		}
		mounted = false
	}
	t.Cleanup(release)
	return dir, release
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	// Not t.Context: a killed tool could not die while it waits for a device.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), need.Command(t, name), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// A fileVolume is a volume in a file.
type fileVolume struct {
	*os.File
	size int64
}

func openFileVolume(t testing.TB, name string) *fileVolume {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &fileVolume{f, st.Size()}
}

func (v *fileVolume) Size() int64 { return v.size }

func (v *fileVolume) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return v.File.ReadAt(p, off)
}
