// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/claim"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/configfs"
)

// recoveries is how many devices are recovered at the same time.
const recoveries = 16

// Recover resumes every device of the tenant's that is not served by e. What
// is left of devices that were being made or removed, and can have no users,
// is removed, and so are orphans that have none.
func (e *Exporter) Recover(ctx context.Context, open func(ctx context.Context, id string) (backend.Volume, error)) ([]backend.Device, error) {
	stores, err := e.tree.Backstores(configfs.HBAOf(e.opts.Tenant))
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var (
		mu      sync.Mutex // guards devices and errs
		devices []backend.Device
		errs    []error
		wg      sync.WaitGroup
		turn    = make(chan struct{}, recoveries)
	)
	for _, s := range stores {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			d, err := e.recoverDevice(ctx, s, open)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("recover device %q: %w", s.ID, err))
			}
			if d != nil {
				devices = append(devices, d)
			}
		})
	}
	wg.Wait()
	return devices, errors.Join(errs...)
}

// recoverDevice returns nil without an error for what is no device to be
// recovered.
func (e *Exporter) recoverDevice(ctx context.Context, s configfs.Backstore, open func(context.Context, string) (backend.Volume, error)) (*Device, error) {
	if e.lookup(s.ID) != nil {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !e.tree.Attached(s) {
		return nil, e.clear(ctx, s)
	}
	v, err := open(ctx, s.ID)
	if errors.Is(err, backend.ErrOrphan) {
		return nil, e.removeOrphan(ctx, s)
	}
	if err != nil {
		return nil, err
	}
	d := e.newDevice(ctx, s.ID, v)
	err = e.reserve(d)
	if err == nil {
		defer e.exports.Done()
		err = d.resume(ctx)
	}
	if err == nil {
		return d, nil
	}
	d.cancel()
	e.forget(d)
	if err = errors.Join(err, v.Close()); e.tree.Attached(s) {
		return nil, err
	}
	return nil, e.clear(ctx, s) // a dead process was about to remove it
}

// resume serves a device that exists. After an error it is as it was, and the
// volume open.
func (d *Device) resume(ctx context.Context) error {
	tree := d.exporter.tree
	size, err := tree.Size(d.store)
	if err != nil {
		return err
	}
	if size != d.vol.Size() {
		return fmt.Errorf("the volume has %d bytes, the disk %d", d.vol.Size(), size)
	}
	uio, err := tree.FindUIO(d.store)
	if err != nil {
		return err
	}
	// The former owner has let go once the UIO device can be opened. What it
	// left unanswered goes back to the initiator.
	if err := d.connect(ctx, uio, func() error { return tree.Suspend(d.store) }); err != nil {
		return err
	}
	if err := errors.Join(tree.Resume(d.store), d.findDisk(ctx)); err != nil {
		d.failed.Store(true)
		_ = tree.Suspend(d.store) // the error that counts is there already
		_ = d.server.close()
		<-d.served
		return err
	}
	go d.watch()
	return nil
}

// removeOrphan removes a device that nobody knows, unless it is in use.
func (e *Exporter) removeOrphan(ctx context.Context, s configfs.Backstore) error {
	disk, err := e.tree.FindDisk(ctx, s)
	if err != nil {
		return err
	}
	c, err := claim.Take(disk.Node, disk.Dev)
	if err != nil {
		return fmt.Errorf("%w: %w", backend.ErrOrphan, err)
	}
	defer c.Release()
	return e.clear(ctx, s)
}

// Config returns the configuration of the device id: what Options.Config said,
// or the program that made it.
func (e *Exporter) Config(id string) (string, error) {
	uio, err := e.tree.FindUIO(configfs.Backstore{HBA: configfs.HBAOf(e.opts.Tenant), ID: id})
	return uio.Config, err
}

// clear removes what is left of a device that no one can use yet, or any more.
// A thread of a dead process may still be making it, and wait for an answer.
func (e *Exporter) clear(ctx context.Context, s configfs.Backstore) error {
	d := e.newDevice(ctx, s.ID, nothing{})
	d.leftover = true
	d.failed.Store(true) // every command is answered with an error
	if err := e.reserve(d); err != nil {
		return err
	}
	defer e.exports.Done()
	defer e.forget(d)
	e.refuseUnclaimed(s)
	uio, err := e.tree.FindUIO(s)
	if errors.Is(err, fs.ErrNotExist) { // it was never enabled
		return d.dismantle()
	}
	if err != nil {
		return err
	}
	if err := d.connect(ctx, uio, func() error { return e.tree.Suspend(s) }); err != nil {
		return err
	}
	return errors.Join(e.tree.Resume(s), d.rollBack())
}

// nothing is the volume of a device that answers with errors only.
type nothing struct{ backend.Volume }

func (nothing) Size() int64 { return 0 }
