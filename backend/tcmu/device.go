// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/ending"
	"github.com/overlaybd-go/overlaybd/backend/internal/removal"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/configfs"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/scsi"
)

var (
	errGone      = errors.New("removed from outside")
	errAbandoned = errors.New("left to the next process")
	errAborted   = errors.New("aborted")
)

// A Device is one SCSI disk.
//
// A device that stops by itself (Done is closed without Remove) keeps its id
// until Remove is called.
type Device struct {
	exporter *Exporter
	store    configfs.Backstore
	vol      backend.Volume
	unit     *scsi.Unit
	ctx      context.Context // that the volume sees
	cancel   context.CancelFunc
	foreign  bool // made by another program, which removes it too
	leftover bool // only to be removed

	failed atomic.Bool   // every command is answered with an error
	served chan struct{} // closed when no command can come
	closed chan struct{} // closed when the volume is closed, too

	mu         sync.Mutex // guards all below, and is held while objects are removed
	server     *server    // nil until the kernel has told of the device
	connectErr error      // why there is none
	disk       configfs.Disk
	removed    bool  // its objects are gone, by Remove
	closeErr   error // what closing the volume returned

	ending  *ending.Ending
	removal removal.Once
}

var _ backend.Device = (*Device)(nil)

func (e *Exporter) newDevice(ctx context.Context, id string, v backend.Volume) *Device {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	store := configfs.Backstore{HBA: configfs.HBAOf(e.opts.Tenant), ID: id}
	return &Device{
		exporter: e,
		store:    store,
		vol:      v,
		unit:     scsi.NewUnit(v, fmt.Sprintf("%d/%s", store.HBA, id)),
		ctx:      ctx,
		cancel:   cancel,
		served:   make(chan struct{}),
		closed:   make(chan struct{}),
		ending:   ending.New(),
	}
}

// create makes the device. After an error nothing is left, and the volume is
// open.
func (d *Device) create(ctx context.Context, p configfs.Params) error {
	if err := d.exporter.tree.Create(d.store, p); err != nil {
		return err
	}
	if err := d.bringUp(ctx); err != nil {
		return errors.Join(err, d.rollBack())
	}
	go d.watch()
	return nil
}

func (d *Device) bringUp(ctx context.Context) error {
	tree := d.exporter.tree
	if err := tree.Enable(ctx, d.store); err != nil {
		return errors.Join(d.connectError(), err)
	}
	if !d.connected() {
		return errors.New("the kernel enabled the device without telling of it")
	}
	if err := tree.Attach(d.store); err != nil {
		return err
	}
	return d.findDisk(ctx)
}

// findDisk waits for the disk and tunes it.
func (d *Device) findDisk(ctx context.Context) error {
	disk, err := d.exporter.tree.FindDisk(ctx, d.store)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.disk = disk
	d.mu.Unlock()
	opts := &d.exporter.opts
	return errors.Join(disk.SetTimeout(opts.DiskTimeout), disk.SetQueueDepth(opts.QueueDepth))
}

// rollBack removes what create has made. It does not wait for the volume.
func (d *Device) rollBack() error {
	d.failed.Store(true)
	d.cancel()
	err := d.dismantle()
	if d.connected() {
		if err != nil {
			err = errors.Join(err, d.server.close())
		}
		<-d.served
	}
	return err
}

// dismantle removes the device's objects. A link that someone else is making,
// which shows when it is made, keeps them for a while.
func (d *Device) dismantle() error {
	tree := d.exporter.tree
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := tree.Detach(d.store)
		if err == nil {
			err = tree.Destroy(d.store)
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// connect starts to serve the device's ring, when prepare has returned.
func (d *Device) connect(ctx context.Context, uio configfs.UIO, prepare func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.server != nil {
		return errors.New("served already")
	}
	s, err := newServer(ctx, d.exporter.tree, uio, d.exporter.opts.QueueDepth, d.handle, prepare)
	if err != nil {
		return err
	}
	d.server = s
	go d.serve(s)
	return nil
}

func (d *Device) serve(s *server) {
	if err := s.serve(); err != nil {
		d.fail(err)
	}
	close(d.served)
}

func (d *Device) connected() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.server != nil
}

func (d *Device) setConnectError(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.connectErr = err
}

func (d *Device) connectError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.connectErr
}

// watch closes the volume of a device that was made, when it is served no
// more.
func (d *Device) watch() {
	<-d.served
	d.cancel()
	err := d.vol.Close()

	d.mu.Lock() // a removal under way decides whether this was Remove
	d.closeErr = err
	removed := d.removed
	d.mu.Unlock()
	close(d.closed)
	switch {
	case d.foreign:
		d.exporter.forget(d)
		d.ending.Come(nil)
	case !removed:
		d.fail(errGone)
	}
}

// handle serves one command. A panic of the volume ends here: the command is
// answered with an error, and so is every later one.
func (d *Device) handle(s *slot) (status byte, sense []byte) {
	defer func() {
		if v := recover(); v != nil {
			d.fail(fmt.Errorf("volume panicked: %v\n%s", v, debug.Stack()))
			status, sense = refuse(s, nil)
		}
	}()
	if d.failed.Load() {
		return refuse(s, nil)
	}
	if err := d.unit.Do(d.ctx, &s.cmd.CDB, s.cmd.Data); err != nil {
		return refuse(s, err)
	}
	return scsi.Good, nil
}

func refuse(s *slot, err error) (status byte, sense []byte) {
	return scsi.CheckCondition, scsi.SenseOf(err).Append(s.sense[:0])
}

// fail ends the device with err, but leaves its objects.
func (d *Device) fail(err error) {
	d.failed.Store(true)
	d.ending.Come(fmt.Errorf("device %s: %w", d.store.ID, err))
}

// ID returns the name that Export was given.
func (d *Device) ID() string { return d.store.ID }

// Path returns the block special file.
func (d *Device) Path() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.disk.Node
}

// Done is closed when the device has stopped: removed, aborted, abandoned,
// removed behind our back, or failing every command because its volume
// panicked.
func (d *Device) Done() <-chan struct{} { return d.ending.Done() }

// Err says why the device has stopped; nil before that, and after Remove.
func (d *Device) Err() error { return d.ending.Err() }

// Abort makes the device answer every command with an error, in use or not,
// and cancels the context of the volume's calls. The device then waits for
// Remove.
func (d *Device) Abort() error {
	d.fail(errAborted)
	d.cancel()
	return nil
}
