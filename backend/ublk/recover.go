// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/claim"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

// recoveries is how many devices are recovered at the same time.
const recoveries = 16

type opener = func(ctx context.Context, id string) (backend.Volume, error)

func pid() int { return os.Getpid() }

// Recover resumes every device of the tenant's that is not served by e. What
// is left of devices that were being made or removed, and can have no users,
// is removed, and so are orphans that have none.
func (e *Exporter) Recover(ctx context.Context, open func(ctx context.Context, id string) (backend.Volume, error)) ([]backend.Device, error) {
	numbers, err := e.findLeft()
	if err != nil {
		return nil, err
	}
	var (
		mu      sync.Mutex // guards devices and errs
		devices []backend.Device
		errs    []error
		wg      sync.WaitGroup
		turn    = make(chan struct{}, recoveries)
	)
	for _, n := range numbers {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			d, err := e.recoverNumber(ctx, n, open)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			}
			if d != nil {
				devices = append(devices, d)
			}
		})
	}
	wg.Wait()
	return devices, errors.Join(errs...)
}

// recoverNumber returns nil without an error for what is no device to be
// recovered.
func (e *Exporter) recoverNumber(ctx context.Context, number uint32, open opener) (*Device, error) {
	r, damaged := e.records.get(number)
	i, err := e.control.Info(ctx, number)
	switch {
	case errors.Is(err, unix.ENODEV), err == nil && damaged == nil && i.Tag != r.tag:
		return nil, e.strike(record{number: number})
	case damaged != nil:
		return nil, damaged // and who knows whose device that is
	}
	var d *Device
	if err == nil {
		d, err = e.recoverDevice(ctx, r, i, open)
	}
	if err != nil {
		return nil, fmt.Errorf("recover device %q: %w", r.id, err)
	}
	return d, nil
}

// recoverDevice recovers the device that a record and the kernel tell of.
func (e *Exporter) recoverDevice(ctx context.Context, r record, i driver.Info, open opener) (*Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if i.State == driver.Dead || i.Features&driver.Recovery == 0 {
		return nil, e.clear(ctx, r)
	}
	v, err := open(ctx, r.id)
	if errors.Is(err, backend.ErrOrphan) {
		return nil, e.removeOrphan(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	d := e.newDevice(ctx, r.id, v)
	d.record = r
	if err := e.reserve(d, true); err != nil {
		d.cancel()
		return nil, errors.Join(err, v.Close())
	}
	defer e.exports.Done()
	if err := d.resume(ctx, i); err != nil {
		d.cancel()
		e.forget(d)
		return nil, errors.Join(err, v.Close())
	}
	e.mu.Lock()
	delete(e.left, r.number)
	e.mu.Unlock()
	return d, nil
}

// removeOrphan removes a device that nobody knows, unless it is in use.
func (e *Exporter) removeOrphan(ctx context.Context, r record) error {
	if err := e.stopOrphan(ctx, r); err != nil {
		return err
	}
	return e.clear(ctx, r)
}

// stopOrphan makes the disk of an orphan disappear. It keeps the disk from
// being used only so long: the kernel does not forget a device that is open.
func (e *Exporter) stopOrphan(ctx context.Context, r record) error {
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
		return fmt.Errorf("%w: %w", backend.ErrOrphan, err)
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
