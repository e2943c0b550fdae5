// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/ending"
	"github.com/overlaybd-go/overlaybd/backend/internal/removal"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

var (
	errGone      = errors.New("removed from outside")
	errAbandoned = errors.New("left to the next process")
	errAborted   = errors.New("aborted")
)

// A Device is one disk.
//
// A device that stops by itself (Done is closed without Remove) keeps its id
// until Remove is called.
type Device struct {
	exporter *Exporter
	id       string
	disk     *disk
	ctx      context.Context // that the volume sees
	cancel   context.CancelFunc

	// Set while the device is made:
	record record
	server server
	node   node

	failed atomic.Bool   // every request is answered with an error
	closed chan struct{} // closed when no request can come and the volume is closed

	mu       sync.Mutex // guards all below, and is held while the disk is removed
	stopped  bool       // the disk is gone, by Remove
	closeErr error      // what closing the volume returned

	ending  *ending.Ending
	removal removal.Once
}

var _ backend.Device = (*Device)(nil)

func (e *Exporter) newDevice(ctx context.Context, id string, v backend.Volume) *Device {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &Device{
		exporter: e,
		id:       id,
		disk:     newDisk(v, e.buffers),
		ctx:      ctx,
		cancel:   cancel,
		closed:   make(chan struct{}),
		ending:   ending.New(),
	}
}

// create makes the device. After an error nothing is left, and the volume is
// open.
func (d *Device) create(ctx context.Context) error {
	i, err := d.add(ctx)
	if err != nil {
		return err
	}
	if err := d.bringUp(ctx, i); err != nil {
		return errors.Join(err, d.rollBack(ctx))
	}
	go d.watch()
	return nil
}

// add makes a device that has no disk yet.
func (d *Device) add(ctx context.Context) (driver.Info, error) {
	opts := &d.exporter.opts
	want := driver.Info{Queues: opts.Queues, Depth: opts.QueueDepth, MaxRequest: opts.MaxRequest}
	for {
		r, err := d.exporter.enroll(d.id, want.Number)
		if err != nil {
			return driver.Info{}, err
		}
		d.record, want.Number, want.Tag = r, r.number, r.tag
		i, err := d.exporter.control.Add(ctx, want)
		switch {
		case err == nil:
			return i, nil
		case ctx.Err() != nil:
			d.exporter.leave(r) // it may be made yet
			return driver.Info{}, err
		}
		if e := d.exporter.strike(r); e != nil || !errors.Is(err, unix.EEXIST) {
			return driver.Info{}, errors.Join(err, e)
		}
		want.Number++ // somebody was faster
	}
}

func (d *Device) bringUp(ctx context.Context, i driver.Info) error {
	e := d.exporter
	err := e.control.SetParams(ctx, i.Number, driver.Params{
		Size:       d.disk.size,
		MaxRequest: i.MaxRequest,
		Writable:   d.disk.w != nil,
	})
	if err != nil {
		return err
	}
	if d.server, err = e.host.serve(ctx, i, d.handle); err != nil {
		return err
	}
	if err := e.control.Start(ctx, i.Number, pid()); err != nil {
		return err
	}
	return d.find(ctx)
}

// find learns where the disk is.
func (d *Device) find(ctx context.Context) error {
	p, err := d.exporter.control.Params(ctx, d.record.number)
	if err != nil {
		return err
	}
	d.node, err = d.exporter.host.find(d.record.number, p)
	return err
}

// rollBack removes what create has made.
func (d *Device) rollBack(ctx context.Context) error {
	d.failed.Store(true)
	d.cancel()
	var err error
	if d.server != nil {
		d.server.stop()
		err = d.server.wait()
	}
	if e := d.exporter.clear(ctx, d.record); e != nil {
		d.exporter.leave(d.record)
		err = errors.Join(err, e)
	}
	return err
}

// watch closes the volume when the device is served no more.
func (d *Device) watch() {
	if err := d.server.wait(); err != nil {
		d.fail(err)
	}
	d.cancel()
	err := d.disk.v.Close()

	d.mu.Lock() // a removal under way decides whether this was Remove
	d.closeErr = err
	stopped := d.stopped
	d.mu.Unlock()
	close(d.closed)
	if !stopped {
		d.fail(errGone)
	}
}

// handle serves one request. A panic of the volume ends here: the request is
// answered with an error, and so is every later one.
func (d *Device) handle(s *slot) (code int32) {
	defer func() {
		if v := recover(); v != nil {
			d.fail(fmt.Errorf("volume panicked: %v\n%s", v, debug.Stack()))
			code = result(&s.req, unix.EIO)
		}
	}()
	if d.failed.Load() {
		return result(&s.req, unix.EIO)
	}
	return result(&s.req, d.disk.do(d.ctx, s))
}

// fail ends the device with err, but leaves its disk.
func (d *Device) fail(err error) {
	d.failed.Store(true)
	d.ending.Come(fmt.Errorf("device %s: %w", d.id, err))
}

// ID returns the name that Export was given.
func (d *Device) ID() string { return d.id }

// Path returns the block special file.
func (d *Device) Path() string { return d.node.path }

// Done is closed when the device has stopped: removed, aborted, abandoned,
// removed behind our back, or failing every request because its volume
// panicked.
func (d *Device) Done() <-chan struct{} { return d.ending.Done() }

// Err says why the device has stopped; nil before that, and after Remove.
func (d *Device) Err() error { return d.ending.Err() }

// Abort makes the device answer every request with an error, in use or not,
// and cancels the context of the volume's calls. The device then waits for
// Remove.
func (d *Device) Abort() error {
	d.fail(errAborted)
	d.cancel()
	return nil
}
