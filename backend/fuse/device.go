// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/ending"
	"github.com/overlaybd-go/overlaybd/backend/internal/removal"
)

var (
	errUnmounted = errors.New("unmounted or aborted from outside")
	errAborted   = errors.New("aborted")
)

// A Device is one FUSE mount with one file in it.
//
// A device that stops by itself (Done is closed without Remove) keeps its id
// until Remove is called.
type Device struct {
	id     string
	dir    string // the mount point
	disk   *disk
	cancel context.CancelFunc // of the context that the volume sees
	forget func()             // frees the id

	failed atomic.Bool   // every request is answered EIO
	served chan struct{} // closed when no request can come and the volume is closed

	mu       sync.Mutex // guards all below, and is held while unmounting
	removed  bool       // unmounted by Remove
	closeErr error      // what closing the volume returned

	goneMu sync.Mutex // guards gone, and is held while the mount is aborted
	gone   bool       // id and directory may be another device's by now

	ending  *ending.Ending
	removal removal.Once
}

var _ backend.Device = (*Device)(nil)

func newDevice(ctx context.Context, id, dir string, v backend.Volume, b *buffers) *Device {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &Device{
		id:     id,
		dir:    dir,
		disk:   newDisk(ctx, v, b),
		cancel: cancel,
		served: make(chan struct{}),
		ending: ending.New(),
	}
}

// start mounts the device and serves it. After an error nothing is left, and
// the volume is open.
func (d *Device) start(opts Options, forget func()) error {
	d.forget = forget
	if err := os.Mkdir(d.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fd, err := mountFUSE(d.dir, d.disk.w == nil)
	if err != nil {
		return errors.Join(err, os.Remove(d.dir))
	}
	go d.serve(newConn(fd, d, opts))
	d.refusePoll()
	return nil
}

// refusePoll makes the kernel learn that the file cannot be polled. A Go
// program that opens the file registers it with its runtime's poller; where
// that program is also the server, as in tests, it could come to wait for
// itself. Nothing else depends on it, so errors do not matter.
//
// No fork may copy the descriptor. A child that closes its copy before it
// executes waits for an answer to FLUSH, its parent waits for it with a
// processor of the runtime in hand, and the goroutine that would answer may
// wait for that one.
func (d *Device) refusePoll() {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	_ = unix.Close(fd)
}

// serve answers requests until the kernel lets go of the mount.
func (d *Device) serve(c *conn) {
	c.serve()
	d.cancel()
	err := d.disk.v.Close()

	d.mu.Lock() // an unmount under way decides whether this was Remove
	d.closeErr = err
	removed := d.removed
	d.mu.Unlock()
	close(d.served)
	if !removed {
		d.fail(errUnmounted)
	}
}

// panicked is where a panic of the volume ends: the request is answered EIO,
// and so is every later one.
func (d *Device) panicked(v any) fuse.Status {
	d.fail(fmt.Errorf("volume panicked: %v\n%s", v, debug.Stack()))
	return fuse.EIO
}

// fail ends the device with err, but leaves it mounted.
func (d *Device) fail(err error) {
	d.failed.Store(true)
	d.ending.Come(fmt.Errorf("device %s: %w", d.id, err))
}

// ID returns the name that Export was given.
func (d *Device) ID() string { return d.id }

// Path returns the regular file standing in for the block device.
func (d *Device) Path() string { return filepath.Join(d.dir, fileName) }

// Done is closed when the device has stopped: removed, aborted, unmounted
// behind our back, or answering EIO for ever because its volume panicked.
func (d *Device) Done() <-chan struct{} { return d.ending.Done() }

// Err says why the device has stopped; nil before that, and after Remove.
func (d *Device) Err() error { return d.ending.Err() }

// Abort ends the device at once, in use or not: its users, who may hang on the
// volume, get errors, and the context of the volume's calls is cancelled. The
// device then waits for Remove.
func (d *Device) Abort() error {
	d.fail(errAborted)
	d.cancel()
	d.goneMu.Lock()
	defer d.goneMu.Unlock()
	if d.gone {
		return nil
	}
	// MNT_FORCE aborts the connection, which waits for nothing.
	if err := unmount(d.dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("abort device %s: %w", d.id, err)
	}
	return nil
}

// Remove unmounts the device and closes its volume. It fails with
// backend.ErrBusy while the file is open or what is in it mounted, and then
// changes nothing. When ctx is done Remove returns, but a removal under way
// goes on; calling Remove again joins it.
func (d *Device) Remove(ctx context.Context) error {
	if err := d.removal.Do(ctx, d.remove); err != nil {
		return fmt.Errorf("remove device %s: %w", d.id, err)
	}
	return nil
}

// remove reports whether the device is gone.
func (d *Device) remove() (gone bool, err error) {
	if err := d.unmount(); err != nil {
		return false, err
	}
	<-d.served
	if err := d.freeID(); err != nil {
		return false, err
	}
	d.ending.Come(nil)
	return true, d.closeErr
}

func (d *Device) freeID() error {
	d.goneMu.Lock()
	defer d.goneMu.Unlock()
	if err := os.Remove(d.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.gone = true
	d.forget()
	return nil
}

// unmount takes the mount away: gently, but a dead one even if it is in use.
func (d *Device) unmount() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.removed {
		return nil
	}
	err := unmount(d.dir, 0)
	if errors.Is(err, backend.ErrBusy) && d.dead() {
		err = unmount(d.dir, unix.MNT_DETACH)
	}
	d.removed = err == nil
	return err
}

func (d *Device) dead() bool {
	select {
	case <-d.served:
		return true
	default:
		return false
	}
}
