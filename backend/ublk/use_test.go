// SPDX-License-Identifier: Apache-2.0

package ublk_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

var many = flag.Int("devices", 100, "how many devices to make at once")

func export(t *testing.T, e *ublk.Exporter, id string, v backend.Volume) backend.Device {
	t.Helper()
	d, err := e.Export(t.Context(), id, v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestExt4 makes a file system on a device, fills it, and reads it through
// another one.
func TestExt4(t *testing.T) {
	needUBLK(t)
	e := newExporter(t, ublk.Options{})
	v := backendtest.NewMemVolume(64 << 20)
	want := make([]byte, 5<<20+123)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)

	d := export(t, e, "ext4", v)
	run(t, need.Command(t, "mkfs.ext4"), "-q", d.Path())
	mounted(t, d.Path(), 0, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "file"), want, 0o600); err != nil {
			t.Error(err)
		}
		if err := d.Remove(t.Context()); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("Remove of a mounted disk = %v, want ErrBusy", err)
		}
	})
	run(t, need.Command(t, "e2fsck"), "-fn", d.Path())
	if v.Syncs() == 0 {
		t.Error("unmounting synced nothing")
	}

	second := export(t, e, "ext4-read", backendtest.ReadOnly(v))
	mounted(t, second.Path(), unix.MS_RDONLY, func(dir string) {
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v, want the %d written", len(got), err, len(want))
		}
	})
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func mounted(t *testing.T, disk string, flags uintptr, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(disk, dir, "ext4", flags, ""); err != nil {
		t.Fatal(err)
	}
	f(dir)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
}

// TestMany makes devices all at once, reads all of them, and removes them.
func TestMany(t *testing.T) {
	needUBLK(t)
	e := newExporter(t, ublk.Options{})
	start := time.Now()
	var wg sync.WaitGroup
	for i := range *many {
		wg.Go(func() {
			v := backendtest.NewMemVolume(1 << 20)
			want := bytes.Repeat([]byte{byte(i)}, 512)
			_, err := v.WriteAt(t.Context(), want, 4096)
			if err != nil {
				t.Error(err)
				return
			}
			d, err := e.Export(t.Context(), fmt.Sprint(i), v)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := readAt(d.Path(), 4096, 512); err != nil || !bytes.Equal(got, want) {
				t.Errorf("device %d: %v, or another's bytes", i, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d devices in %v", *many, time.Since(start).Round(time.Millisecond))
}

func readAt(name string, off int64, n int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	_, err = f.ReadAt(p, off)
	return p, errors.Join(err, f.Close())
}

// TestNames makes devices of the same id for several tenants, and refuses ids
// that are no file names.
func TestNames(t *testing.T) {
	needUBLK(t)
	dir := t.TempDir()
	for _, id := range []string{"1", strings.Repeat("x", 255), "sha256:0a,b c=%s\n"} {
		for _, tenant := range []int{0, 5} {
			e := newExporter(t, ublk.Options{Dir: dir, Tenant: tenant})
			v := backendtest.NewMemVolume(int64(1+tenant) << 20)
			d := export(t, e, id, v)
			size, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.Path()), "size"))
			if want := fmt.Sprintln(v.Size() / 512); err != nil || string(size) != want {
				t.Errorf("tenant %d reaches a disk of %q sectors, %v, want %q", tenant, size, err, want)
			}
		}
	}
	e := newExporter(t, ublk.Options{})
	for _, id := range []string{"", ".", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		if _, err := e.Export(t.Context(), id, backendtest.NewMemVolume(512)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("id %q: %v, want fs.ErrInvalid", id, err)
		}
	}
}

// TestUnread asks that a device costs no read before somebody reads it, not
// even of a partition table.
func TestUnread(t *testing.T) {
	needUBLK(t)
	var reads atomic.Int32
	v := backendtest.NewFaultVolume(backendtest.NewMemVolume(1 << 20))
	v.Set(func(_ context.Context, op backendtest.Op, _, _ int64) error {
		if op == backendtest.Read {
			reads.Add(1)
		}
		return nil
	})
	export(t, newExporter(t, ublk.Options{}), "unread", v)
	if n := reads.Load(); n != 0 {
		t.Errorf("%d reads, want none", n)
	}
}

// TestTools asks tools of the distribution to take the disk for one.
func TestTools(t *testing.T) {
	needUBLK(t)
	e := newExporter(t, ublk.Options{})
	v := backendtest.NewMemVolume(1 << 20)
	if _, err := v.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	d := export(t, e, "tools", v)
	run(t, need.Command(t, "blkdiscard"), "-o", "4096", "-l", "65536", d.Path())
	if got, err := readAt(d.Path(), 4096, 65536); err != nil || !bytes.Equal(got, make([]byte, 65536)) {
		t.Errorf("what was discarded does not read as zeroes: %v", err)
	}
	run(t, need.Command(t, "blkdiscard"), "-z", "-o", "524288", "-l", "65536", d.Path())
	if got, err := readAt(d.Path(), 524288-512, 512+65536); err != nil || !bytes.Equal(got, append(bytes.Repeat([]byte{7}, 512), make([]byte, 65536)...)) {
		t.Errorf("what was zeroed does not read as zeroes: %v", err)
	}
}

// TestAbort ends a device whose volume hangs: its users get errors.
func TestAbort(t *testing.T) {
	needUBLK(t)
	v := backendtest.NewFaultVolume(backendtest.NewMemVolume(1 << 20))
	d, ok := export(t, newExporter(t, ublk.Options{}), "abort", v).(*ublk.Device)
	if !ok {
		t.Fatal("not a *Device")
	}
	entered, release := v.Stall(backendtest.Read, 0)
	defer release()
	failed := make(chan error, 1)
	go func() {
		_, err := readAt(d.Path(), 0, 512)
		failed <- err
	}()
	<-entered
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, unix.EIO) {
		t.Errorf("read of an aborted device = %v, want EIO", err)
	}
	<-d.Done()
	if err := d.Err(); err == nil {
		t.Error("an aborted device has no Err")
	}
}
