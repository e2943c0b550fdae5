// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

const foreign = 0 // number of a device of another program

func volume() *backendtest.MemVolume { return backendtest.NewMemVolume(1 << 20) }

func openVolume(context.Context, string) (backend.Volume, error) { return volume(), nil }

// survive calls f, which is killed at a command to the driver. It reports
// false if f was over before.
func survive(f *fakeDriver, at int, late bool, op func()) bool {
	f.mu.Lock()
	f.count, f.crash, f.late = 0, at, late
	f.mu.Unlock()
	over := make(chan struct{})
	go func() {
		defer close(over)
		op()
	}()
	<-over
	select {
	case <-f.crashed:
		return true
	default:
		return false
	}
}

// checkNext asks the next process for order: what is left is recovered or
// removed, with its record, and nothing else is touched.
func checkNext(t *testing.T, f *fakeDriver, opts Options) {
	t.Helper()
	e := newFakeExporter(t, f, opts)
	known := len(e.left) > 0
	_, err := e.Export(t.Context(), "device", volume())
	if known != errors.Is(err, fs.ErrExist) || !known && err != nil {
		t.Errorf("Export of an id that was left (%v) = %v", known, err)
	}
	want := 1
	if err == nil {
		want++
	}
	devices, err := backendtest.Recover(t.Context(), e, openVolume)
	if err != nil || len(devices) > 1 {
		t.Errorf("recovered %d devices, %v", len(devices), err)
	}
	if got, want := f.number(), want+len(devices); got != want {
		t.Errorf("%d devices in the kernel, want %d", got, want)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if f.number() != 1 || f.devices[foreign].info.State != driver.Live {
		t.Error("the device of another program was touched")
	}
	if left, err := filepath.Glob(filepath.Join(opts.Dir, "*", "[0-9]*")); len(left) > 0 || err != nil {
		t.Errorf("records left: %q, %v", left, err)
	}
}

// TestCrash kills a process before and after every command by which a device
// is made, removed and recovered.
func TestCrash(t *testing.T) {
	for name, features := range map[string]driver.Feature{"recovery": wanted, "none": 0} {
		t.Run(name, func(t *testing.T) {
			for _, op := range []string{"export", "remove", "recover"} {
				t.Run(op, func(t *testing.T) {
					points := 0
					for crashOnce(t, op, features, 1+points/2, points%2 == 1) {
						points++
					}
					if points < 4 {
						t.Errorf("killed at %d points, want more", points)
					}
				})
			}
		})
	}
}

func crashOnce(t *testing.T, op string, features driver.Feature, at int, late bool) bool {
	f := newFakeDriver(t)
	f.features = features
	f.foreign(foreign)
	opts := Options{Dir: t.TempDir()}
	e := newFakeExporter(t, f, opts)
	var d backend.Device
	if op != "export" {
		var err error
		if d, err = e.Export(t.Context(), "device", volume()); err != nil {
			t.Fatal(err)
		}
	}
	if op == "recover" {
		f.mu.Lock()
		f.kill()
		f.devices[foreign].info.State = driver.Live
		f.mu.Unlock()
		e = newFakeExporter(t, f, opts)
	}
	killed := survive(f, at, late, map[string]func(){
		"export":  func() { _, _ = e.Export(t.Context(), "device", volume()) },
		"remove":  func() { _ = d.Remove(t.Context()) },
		"recover": func() { _, _ = backendtest.Recover(t.Context(), e, openVolume) },
	}[op])
	if !killed {
		return false
	}
	f.mu.Lock()
	f.devices[foreign].info.State = driver.Live // its process lives
	f.mu.Unlock()
	t.Run(fmt.Sprint(at, late), func(t *testing.T) { checkNext(t, f, opts) })
	return true
}

// TestRefused has the driver refuse each command by which a device is made:
// Export says so, and nothing is left.
func TestRefused(t *testing.T) {
	for at := 1; ; at++ {
		f := newFakeDriver(t)
		opts := Options{Dir: t.TempDir()}
		e := newFakeExporter(t, f, opts)
		f.count, f.crash, f.refuse = 0, at, unix.ENOMEM
		v := volume()
		_, err := e.Export(t.Context(), "device", v)
		if err == nil {
			if at < 4 {
				t.Errorf("a device takes %d commands", at)
			}
			return
		}
		if !errors.Is(err, unix.ENOMEM) || v.Closes() != 0 || f.number() != 0 {
			t.Errorf("command %d refused: %v; volume closed %d times, %d devices left", at, err, v.Closes(), f.number())
		}
		if _, err := e.Export(t.Context(), "device", v); err != nil {
			t.Errorf("Export after that: %v", err)
		}
	}
}

// TestNumberTaken finds other numbers when those that seemed free are not.
func TestNumberTaken(t *testing.T) {
	f := newFakeDriver(t)
	for n := range uint32(5) {
		f.foreign(n)
	}
	opts := Options{Dir: t.TempDir()}
	e := newFakeExporter(t, f, opts)
	d, err := e.Export(t.Context(), "device", volume())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.Path(), "/none/ublkb5"; got != want {
		t.Errorf("made %s, want %s", got, want)
	}
	if err := e.Close(); err != nil || f.number() != 5 {
		t.Errorf("Close = %v, and %d devices of others are left, want 5", err, f.number())
	}
}

// TestStale has another program's device under the number of a record.
func TestStale(t *testing.T) {
	f := newFakeDriver(t)
	opts := Options{Dir: t.TempDir()}
	e := newFakeExporter(t, f, opts)
	if _, err := e.Export(t.Context(), "device", volume()); err != nil {
		t.Fatal(err)
	}
	f.foreign(0) // the machine has restarted, say
	e = newFakeExporter(t, f, opts)
	devices, err := backendtest.Recover(t.Context(), e, openVolume)
	if err != nil || len(devices) != 0 || f.number() != 1 || f.devices[0].info.State != driver.Live {
		t.Errorf("recovered %d devices, %v; the other program's: %+v", len(devices), err, f.devices[0])
	}
	if _, err := e.Export(t.Context(), "device", volume()); err != nil {
		t.Errorf("Export of the id: %v", err)
	}
}

// TestDamagedRecord tells of a record that cannot be read where the kernel has
// a device that it may be of, and forgets it where there is none.
func TestDamagedRecord(t *testing.T) {
	f := newFakeDriver(t)
	f.foreign(3)
	opts := Options{Dir: t.TempDir()}
	e := newFakeExporter(t, f, opts)
	for _, n := range []uint32{3, 4} {
		if err := os.WriteFile(e.records.path(n), []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e = newFakeExporter(t, f, opts)
	if devices, err := backendtest.Recover(t.Context(), e, openVolume); err == nil || len(devices) != 0 {
		t.Errorf("recovered %d devices, %v, want an error", len(devices), err)
	}
	if left, err := e.records.numbers(); err != nil || len(left) != 1 || left[0] != 3 {
		t.Errorf("records left: %d, %v, want 3", left, err)
	}
	if f.devices[3].info.State != driver.Live {
		t.Error("a device that may not be ours was touched")
	}
}

// TestOpenFails leaves a device whose volume cannot be opened as it is, and its
// id taken, until it can.
func TestOpenFails(t *testing.T) {
	f := newFakeDriver(t)
	opts := Options{Dir: t.TempDir()}
	e := newFakeExporter(t, f, opts)
	if _, err := e.Export(t.Context(), "device", volume()); err != nil {
		t.Fatal(err)
	}
	f.kill()
	e = newFakeExporter(t, f, opts)
	fails := func(context.Context, string) (backend.Volume, error) { return nil, unix.ENOENT }
	small := func(context.Context, string) (backend.Volume, error) { return backendtest.NewMemVolume(512), nil }
	readOnly := func(context.Context, string) (backend.Volume, error) { return backendtest.ReadOnly(volume()), nil }
	for name, open := range map[string]func(context.Context, string) (backend.Volume, error){"error": fails, "size": small, "read-only": readOnly} {
		if devices, err := backendtest.Recover(t.Context(), e, open); err == nil || len(devices) != 0 {
			t.Errorf("%s: recovered %d devices, %v", name, len(devices), err)
		}
		if _, err := e.Export(t.Context(), "device", volume()); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: Export of the id = %v, want fs.ErrExist", name, err)
		}
	}
	if devices, err := backendtest.Recover(t.Context(), e, openVolume); err != nil || len(devices) != 1 {
		t.Errorf("recovered %d devices, %v, want one", len(devices), err)
	}
}

// TestTenants has two tenants use the same directory and ids.
func TestTenants(t *testing.T) {
	f := newFakeDriver(t)
	dir := t.TempDir()
	for tenant := range 2 {
		e := newFakeExporter(t, f, Options{Dir: dir, Tenant: tenant})
		if _, err := e.Export(t.Context(), "device", volume()); err != nil {
			t.Fatal(err)
		}
	}
	f.kill()
	for tenant := range 2 {
		e := newFakeExporter(t, f, Options{Dir: dir, Tenant: tenant})
		devices, err := backendtest.Recover(t.Context(), e, openVolume)
		if err != nil || len(devices) != 1 {
			t.Fatalf("tenant %d recovered %d devices, %v, want its own", tenant, len(devices), err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	if f.number() != 0 {
		t.Errorf("%d devices are left", f.number())
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(record{tag: 1, id: "device"}.encode())
	f.Add([]byte("0000000000000001\n"))
	f.Add([]byte("0x00000000000001\na"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(7, b)
		if err != nil {
			if r != (record{}) {
				t.Errorf("%+v with error %v", r, err)
			}
			return
		}
		if string(r.encode()) != string(b) || checkID(r.id) != nil {
			t.Errorf("%q is read as %+v", b, r)
		}
	})
}
