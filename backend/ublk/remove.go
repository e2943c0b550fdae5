// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/internal/claim"
)

// Remove removes the disk and closes the volume. It fails with
// backend.ErrBusy while the disk is open or mounted, and then changes nothing.
// When ctx is done Remove returns, but a removal under way goes on; calling
// Remove again joins it.
func (d *Device) Remove(ctx context.Context) error {
	if err := d.removal.Do(ctx, d.remove); err != nil {
		return fmt.Errorf("remove device %s: %w", d.id, err)
	}
	return nil
}

// remove reports whether the device is gone.
func (d *Device) remove() (gone bool, err error) {
	ctx := context.Background() // a removal goes on when its caller does not wait
	if err := d.removeDisk(ctx); err != nil {
		return false, err
	}
	<-d.closed
	if err := d.exporter.delete(ctx, d.record); err != nil {
		return false, err
	}
	d.exporter.forget(d)
	d.ending.Come(nil)
	return true, d.closeErr
}

// removeDisk makes the disk disappear, whereupon it is served no more.
func (d *Device) removeDisk(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return nil
	}
	ours, err := d.exporter.ours(ctx, d.record)
	if err != nil {
		return err
	}
	if !ours {
		d.stopped = true // by somebody else
		d.server.stop()
		return nil
	}
	c, err := claim.Take(d.node.path, d.node.dev)
	if err != nil {
		return err
	}
	defer c.Release()
	if err := d.exporter.control.Stop(ctx, d.record.number); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	d.stopped = true
	return nil
}

// abandon stops serving the device, and leaves it to the next process.
func (d *Device) abandon() error {
	d.ending.Come(errAbandoned)
	d.server.stop()
	<-d.closed
	d.exporter.forget(d)
	return d.closeErr
}
