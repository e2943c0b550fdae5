// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/claim"
	"github.com/overlaybd-go/overlaybd/backend/internal/roster"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

// recoveries is how many devices that were left are looked at, and removed, at
// the same time.
const recoveries = 16

func pid() int { return os.Getpid() }

// Left returns the ids of the tenant's devices that e does not serve, and
// removes what is left of those that can have no users.
func (e *Exporter) Left(ctx context.Context) (ids []string, err error) {
	if err := e.findLeft(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	numbers := slices.Collect(maps.Keys(e.left))
	e.mu.Unlock()
	var mu sync.Mutex // guards ids
	err = roster.Each(numbers, recoveries, func(n uint32) error {
		r, i, err := e.identify(ctx, n)
		switch {
		case errors.Is(err, backend.ErrGone):
			return nil
		case err != nil:
			return err
		case !waits(i):
			if err := e.clear(ctx, r); err != nil {
				return fmt.Errorf("remove what is left of device %q: %w", r.id, err)
			}
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, r.id)
		return nil
	})
	return ids, err
}

// waits reports whether the users of a device wait for somebody to serve it. It
// has none if it was never started, and no hope if it cannot be recovered.
func waits(i driver.Info) bool { return i.State != driver.Dead && i.Features&driver.Recovery != 0 }

// identify returns what the record and the kernel say of a device. It removes
// the record of one that the kernel does not have, which is ErrGone.
func (e *Exporter) identify(ctx context.Context, number uint32) (record, driver.Info, error) {
	r, damaged := e.records.get(number)
	i, err := e.info(ctx, number)
	switch {
	case errors.Is(err, unix.ENODEV), err == nil && damaged == nil && i.Tag != r.tag:
		if err := e.strike(record{number: number}); err != nil {
			return record{}, driver.Info{}, err
		}
		return record{}, driver.Info{}, backend.ErrGone
	case damaged != nil:
		return record{}, driver.Info{}, damaged // and who knows whose device that is
	case err != nil:
		return record{}, driver.Info{}, fmt.Errorf("device %q: %w", r.id, err)
	}
	return r, i, nil
}

// dying is how long the kernel may go on making a device for a process that was
// killed. Its record must not be removed before.
const dying = time.Second

// info returns what the kernel says of a device: ENODEV only if there is none
// for a while.
func (e *Exporter) info(ctx context.Context, number uint32) (driver.Info, error) {
	for deadline := time.Now().Add(dying); ; {
		i, err := e.control.Info(ctx, number)
		if !errors.Is(err, unix.ENODEV) || time.Now().After(deadline) {
			return i, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return i, ctx.Err()
		}
	}
}

// Resume serves the device id by v.
func (e *Exporter) Resume(ctx context.Context, id string, v backend.Volume) (backend.Device, error) {
	d, err := e.resume(ctx, id, v)
	if err != nil {
		return nil, fmt.Errorf("resume device %q: %w", id, err)
	}
	return d, nil
}

func (e *Exporter) resume(ctx context.Context, id string, v backend.Volume) (*Device, error) {
	d := e.newDevice(ctx, id, v)
	made, err := e.devices.Add(id, d)
	if err == nil {
		defer made()
		if err = d.takeOver(ctx); err != nil {
			e.forget(d)
		}
	}
	if err != nil {
		d.cancel()
		return nil, err
	}
	return d, nil
}

// takeOver finds the device that was left, and serves it.
func (d *Device) takeOver(ctx context.Context) error {
	e := d.exporter
	if err := ctx.Err(); err != nil {
		return err
	}
	number, ok := e.leftNumber(d.id)
	if !ok {
		return backend.ErrGone
	}
	r, i, err := e.identify(ctx, number)
	if err != nil {
		return err
	}
	if !waits(i) {
		return errors.Join(backend.ErrGone, e.clear(ctx, r))
	}
	d.record = r
	if err := d.resume(ctx, i); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.left, number)
	return nil
}

// Discard removes the device id unless it is in use.
func (e *Exporter) Discard(ctx context.Context, id string) error {
	if err := e.discard(ctx, id); err != nil {
		return fmt.Errorf("discard device %q: %w", id, err)
	}
	return nil
}

func (e *Exporter) discard(ctx context.Context, id string) error {
	number, ok := e.leftNumber(id)
	if !ok {
		return nil
	}
	r, i, err := e.identify(ctx, number)
	switch {
	case errors.Is(err, backend.ErrGone):
		return nil
	case err != nil:
		return err
	case waits(i):
		if err := e.stopUnused(ctx, r); err != nil {
			return err
		}
	}
	return e.clear(ctx, r)
}

// stopUnused makes the disk of a device disappear. It keeps the disk from being
// used only so long: the kernel does not forget a device that is open.
func (e *Exporter) stopUnused(ctx context.Context, r record) error {
	p, err := e.control.Params(ctx, r.number)
	if err != nil {
		return err
	}
	n, err := e.host.find(r.number, p)
	if err != nil {
		return err
	}
	c, err := claim.Take(n.path, n.dev)
	if err != nil {
		return err
	}
	defer c.Release()
	return e.control.Stop(ctx, r.number)
}

// resume serves a device that exists. After an error its users wait as before,
// and the volume is open.
func (d *Device) resume(ctx context.Context, i driver.Info) error {
	e := d.exporter
	p, err := e.control.Params(ctx, i.Number)
	switch {
	case err != nil:
		return err
	case p.Size != d.disk.size:
		return fmt.Errorf("the volume has %d bytes, the disk %d", d.disk.size, p.Size)
	case p.Writable && d.disk.w == nil:
		return errors.New("the volume is read-only, the disk is not")
	}
	if err := e.host.settle(ctx, i); err != nil {
		return err
	}
	err = retryBusy(ctx, func() error { return e.control.StartRecovery(ctx, i.Number) })
	if err != nil {
		return err
	}
	if d.server, err = e.host.serve(ctx, i, d.handle); err != nil {
		return err
	}
	if err := errors.Join(e.control.EndRecovery(ctx, i.Number, pid()), d.find(ctx)); err != nil {
		d.failed.Store(true)
		d.server.stop()
		return errors.Join(err, d.server.wait())
	}
	go d.watch()
	return nil
}
