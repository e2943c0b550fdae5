// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A removal is one try to remove a device, shared by all who ask meanwhile.
type removal struct {
	done chan struct{}
	err  error // valid once done is closed
	over bool  // the device is gone, whatever err says
}

// Remove removes the disk and closes the volume. It fails with
// backend.ErrBusy while the disk is open or mounted, and then changes nothing.
// When ctx is done Remove returns, but a removal under way goes on; calling
// Remove again joins it.
func (d *Device) Remove(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove device %s: %w", d.store.ID, err)
	}
	r := d.tryRemoval()
	select {
	case <-r.done:
		if r.err != nil {
			return fmt.Errorf("remove device %s: %w", d.store.ID, r.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("remove device %s: %w", d.store.ID, ctx.Err())
	}
}

// tryRemoval returns the removal under way or completed, or starts one.
func (d *Device) tryRemoval() *removal {
	d.endMu.Lock()
	defer d.endMu.Unlock()
	if r := d.removal; r != nil {
		select {
		case <-r.done:
			if r.over {
				return r
			}
		default:
			return r
		}
	}
	r := &removal{done: make(chan struct{})}
	d.removal = r
	go func() {
		r.over, r.err = d.remove()
		close(r.done)
	}()
	return r
}

// remove reports whether the device is gone.
func (d *Device) remove() (gone bool, err error) {
	if err := d.removeObjects(); err != nil {
		return false, err
	}
	<-d.closed
	d.exporter.forget(d)
	d.end(nil)
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
	claim, err := claimDisk(d.disk)
	if err != nil {
		return err
	}
	defer claim.release()
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
	d.end(errAbandoned)
	_ = d.server.close() // it may have ended by itself
	<-d.closed
	d.exporter.forget(d)
	return errors.Join(err, d.closeErr)
}

// busy is the error for a disk in use.
func busy(why string) error { return fmt.Errorf("%w: %s", backend.ErrBusy, why) }

// isGone reports whether err is that of a disk that nobody can use any more.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}
