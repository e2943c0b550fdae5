// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/claim"
	"github.com/overlaybd-go/overlaybd/backend/internal/roster"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/configfs"
)

// recoveries is how much of what is left is removed at the same time.
const recoveries = 16

// Left returns the ids of the tenant's devices that e does not serve, and
// removes what is left of those that can have no users.
func (e *Exporter) Left(ctx context.Context) (ids []string, err error) {
	stores, err := e.tree.Backstores(configfs.HBAOf(e.opts.Tenant))
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var unused []configfs.Backstore
	for _, s := range stores {
		switch {
		case e.devices.Get(s.ID) != nil:
		case e.tree.Attached(s):
			ids = append(ids, s.ID)
		default:
			unused = append(unused, s)
		}
	}
	return ids, roster.Each(unused, recoveries, func(s configfs.Backstore) error {
		if err := e.clear(ctx, s); err != nil {
			return fmt.Errorf("remove what is left of device %q: %w", s.ID, err)
		}
		return nil
	})
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
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := e.newDevice(ctx, id, v)
	made, err := e.devices.Add(id, d)
	if err != nil {
		d.cancel()
		return nil, err
	}
	defer made()
	attached := e.tree.Attached(d.store)
	if attached {
		if err = d.resume(ctx); err == nil {
			return d, nil
		}
		attached = e.tree.Attached(d.store)
	}
	d.cancel()
	e.forget(d)
	if attached {
		return nil, err
	}
	// Somebody was about to remove it.
	return nil, errors.Join(backend.ErrGone, e.clear(ctx, d.store))
}

// Discard removes the device id unless it is in use.
func (e *Exporter) Discard(ctx context.Context, id string) error {
	if err := e.discard(ctx, configfs.Backstore{HBA: configfs.HBAOf(e.opts.Tenant), ID: id}); err != nil {
		return fmt.Errorf("discard device %q: %w", id, err)
	}
	return nil
}

func (e *Exporter) discard(ctx context.Context, s configfs.Backstore) error {
	if e.tree.Attached(s) {
		disk, err := e.tree.FindDisk(ctx, s)
		if err != nil {
			return err
		}
		c, err := claim.Take(disk.Node, disk.Dev)
		if err != nil {
			return err
		}
		defer c.Release()
	}
	return e.clear(ctx, s)
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
	made, err := e.devices.Add(s.ID, d)
	if err != nil {
		d.cancel()
		return err
	}
	defer made()
	defer e.forget(d)
	e.refuseUnclaimed(s)
	for deadline := time.Now().Add(halfMade); ; {
		err := d.clear(ctx)
		if !isHalfMade(err) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// halfMade is how long a device may be known to UIO, but not yet so far that
// it can be suspended: the thread that makes it has yet to tell of it and to be
// refused.
const halfMade = 10 * time.Second

// isHalfMade reports whether err is that of a device that a thread is making, or
// removing: it cannot be suspended yet, or its UIO device is not all there.
func isHalfMade(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist)
}

// clear removes what is left of the device.
func (d *Device) clear(ctx context.Context) error {
	tree := d.exporter.tree
	uio, err := tree.FindUIO(d.store)
	if errors.Is(err, fs.ErrNotExist) { // it was never enabled
		return d.dismantle()
	}
	if err != nil {
		return err
	}
	if err := d.connect(ctx, uio, func() error { return tree.Suspend(d.store) }); err != nil {
		return err
	}
	return errors.Join(tree.Resume(d.store), d.rollBack())
}

// nothing is the volume of a device that answers with errors only.
type nothing struct{ backend.Volume }

func (nothing) Size() int64 { return 0 }
