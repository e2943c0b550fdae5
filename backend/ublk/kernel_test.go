// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestGone has another program stop a device, or delete it: the device says so,
// and Remove makes order.
func TestGone(t *testing.T) {
	need.Capability(t, "ublk", Available())
	for name, end := range map[string]func(*Device) error{
		"stopped": func(d *Device) error { return d.exporter.control.Stop(t.Context(), d.record.number) },
		"deleted": func(d *Device) error { return d.exporter.control.Delete(t.Context(), d.record.number) },
	} {
		t.Run(name, func(t *testing.T) {
			e, err := New(Options{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			v := volume()
			d, err := e.export(t.Context(), "device", v)
			if err != nil {
				t.Fatal(err)
			}
			if err := end(d); err != nil {
				t.Fatal(err)
			}
			<-d.Done()
			if err := d.Err(); !errors.Is(err, errGone) {
				t.Errorf("Err() = %v, want %v", err, errGone)
			}
			if err := e.Close(); err != nil || v.Closes() != 1 {
				t.Errorf("Close = %v, and the volume was closed %d times", err, v.Closes())
			}
			if numbers, err := e.records.numbers(); err != nil || len(numbers) != 0 {
				t.Errorf("records left: %d, %v", numbers, err)
			}
		})
	}
}

// TestHalfTakenOver has processes killed while they take a device over: when
// none of its queues is served again, and when some are. The next one can.
func TestHalfTakenOver(t *testing.T) {
	need.Capability(t, "ublk", Available())
	const queues = 2
	for served := range queues + 1 {
		name := filepath.Join(t.TempDir(), "volume")
		open := func(context.Context, string) (backend.Volume, error) { return backendtest.OpenFile(name) }
		d, l := loaded(t, name, Options{Dir: t.TempDir(), Queues: queues})
		if err := d.exporter.Abandon(); err != nil {
			t.Fatal(err)
		}
		e, err := New(d.exporter.opts)
		if err != nil {
			t.Fatal(err)
		}
		takeHalf(t, e, d.record, served)
		devices, err := backendtest.Recover(t.Context(), e, open)
		if err != nil || len(devices) != 1 {
			t.Fatalf("%d queues of %d taken over: recovered %d devices, %v", served, queues, len(devices), err)
		}
		l.Await(8)
		l.Stop(t)
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// loaded returns a device in a file, under load.
func loaded(t *testing.T, name string, opts Options) (*Device, *backendtest.Load) {
	t.Helper()
	if err := writeZeroes(name); err != nil {
		t.Fatal(err)
	}
	e, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	v, err := backendtest.OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.export(t.Context(), "device", v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeLeft(t, opts, d.record) })
	l := backendtest.StartLoad(t, d.Path())
	l.Await(8)
	return d, l
}

// removeLeft removes a device that a test that failed has left, whose users
// wait for ever.
func removeLeft(t *testing.T, opts Options, r record) {
	e, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if ours, _ := e.ours(context.Background(), r); ours {
		t.Errorf("device %s is left, removed: %v", r.id, e.clear(context.Background(), r))
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func writeZeroes(name string) error {
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.Ftruncate(fd, backendtest.LoadSize), unix.Close(fd))
}

// takeHalf does what a process does that takes the device over until so many
// queues are served, and ends.
func takeHalf(t *testing.T, e *Exporter, r record, queues int) {
	t.Helper()
	ctx := t.Context()
	i, err := e.control.Info(ctx, r.number)
	if err != nil {
		t.Fatal(err)
	}
	if err := settle(ctx, i); err != nil {
		t.Fatal(err)
	}
	if err := retryBusy(ctx, func() error { return e.control.StartRecovery(ctx, r.number) }); err != nil {
		t.Fatal(err)
	}
	if queues == 0 {
		return
	}
	i.Queues = queues
	s, err := serve(ctx, i, func(s *slot) int32 { return -int32(unix.EIO) })
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := s.wait(); err != nil {
		t.Fatal(err)
	}
}

// TestIdentity asks the kernel for what it was told.
func TestIdentity(t *testing.T) {
	need.Capability(t, "ublk", Available())
	opts := Options{Dir: t.TempDir(), Queues: 1, QueueDepth: 5, MaxRequest: 64 << 10}
	e, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.export(t.Context(), "device", backendtest.ReadOnly(volume()))
	if err != nil {
		t.Fatal(err)
	}
	i, err := e.control.Info(t.Context(), d.record.number)
	if err != nil || i.Tag != d.record.tag || i.State != driver.Live || i.Queues != 1 || i.Depth != 5 || i.MaxRequest != 64<<10 {
		t.Errorf("the kernel says %+v, %v, and the record %+v", i, err, d.record)
	}
	p, err := e.control.Params(t.Context(), d.record.number)
	if err != nil || p.Size != 1<<20 || p.Writable || p.Major == 0 || unix.Mkdev(p.Major, p.Minor) != d.node.dev {
		t.Errorf("the kernel says %+v, %v", p, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
