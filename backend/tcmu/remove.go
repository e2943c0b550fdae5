// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/overlaybd-go/overlaybd/backend/internal/claim"
)

// Remove removes the disk and closes the volume. It fails with
// backend.ErrBusy while the disk is open or mounted, and then changes nothing.
// When ctx is done Remove returns, but a removal under way goes on; calling
// Remove again joins it.
func (d *Device) Remove(ctx context.Context) error {
	if err := d.removal.Do(ctx, d.remove); err != nil {
		return fmt.Errorf("remove device %s: %w", d.store.ID, err)
	}
	return nil
}

// remove reports whether the device is gone.
func (d *Device) remove() (gone bool, err error) {
	if err := d.removeObjects(); err != nil {
		return false, err
	}
	<-d.closed
	d.exporter.forget(d)
	d.ending.Come(nil)
	return true, d.closeErr
}

// removeObjects makes the kernel forget the device: the disk first, which
// waits for commands under way and needs them answered, then the backstore.
func (d *Device) removeObjects() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.removed {
		return nil
	}
	c, err := claim.Take(d.disk.Node, d.disk.Dev)
	if err != nil {
		return err
	}
	defer c.Release()
	tree := d.exporter.tree
	if err := tree.Detach(d.store); err != nil {
		return err
	}
	d.removed = true // before watch, which the next step sets off, can ask
	if err := tree.Destroy(d.store); err != nil {
		d.removed = false
		return err
	}
	return nil
}

// abandon stops serving the device, and leaves it to the next process.
func (d *Device) abandon() error {
	err := d.exporter.tree.Suspend(d.store)
	if errors.Is(err, os.ErrNotExist) {
		err = nil // removed meanwhile
	}
	d.ending.Come(errAbandoned)
	_ = d.server.close() // it may have ended by itself
	<-d.closed
	d.exporter.forget(d)
	return errors.Join(err, d.closeErr)
}
