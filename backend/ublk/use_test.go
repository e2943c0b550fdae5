// SPDX-License-Identifier: Apache-2.0

package ublk_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
)

func export(t *testing.T, e *ublk.Exporter, id string, v backend.Volume) backend.Device {
	t.Helper()
	d, err := e.Export(t.Context(), id, v)
	if err != nil {
		t.Fatal(err)
	}
	return d
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
