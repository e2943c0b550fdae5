// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/configfs"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/genl"
)

// receive hands out events until the exporter is stopped. It never waits for
// what they bring about: who waits for one of them may keep others from being
// answered.
func (e *Exporter) receive() {
	for {
		events, err := e.events.Receive()
		if err != nil {
			return
		}
		for _, ev := range events {
			e.loops.Go(func() { e.handle(ev) })
		}
	}
}

// handle answers an event that is ours to answer.
func (e *Exporter) handle(ev genl.Event) {
	uio, store, err := e.tree.UIO(ev.Minor, ev.Name)
	if err != nil || store.HBA != configfs.HBAOf(e.opts.Tenant) {
		return
	}
	switch ev.Kind {
	case genl.Added:
		e.added(ev, uio, store)
	case genl.Reconfigured:
		e.answer(ev, unix.EOPNOTSUPP)
	case genl.Removed:
		e.mu.Lock()
		delete(e.unclaimed, store.ID)
		e.mu.Unlock()
		e.answer(ev, 0)
	}
}

// added serves a new device, if it is one of e's.
func (e *Exporter) added(ev genl.Event, uio configfs.UIO, store configfs.Backstore) {
	d := e.claim(ev, store)
	switch {
	case d == nil && e.opts.Adopt != nil:
		e.adopt(ev, uio, store)
	case d == nil: // someone else's to answer
	case d.leftover:
		e.answer(ev, unix.ENODEV)
	default:
		err := d.connect(context.Background(), uio, unprepared)
		d.setConnectError(err)
		e.answer(ev, errnoOf(err))
	}
}

// claim returns the device that an event is of. If it is none of e's, and not
// to be adopted, the event is remembered: who is to answer it may be dead.
func (e *Exporter) claim(ev genl.Event, store configfs.Backstore) *Device {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.devices.Get(store.ID)
	if d == nil && e.opts.Adopt == nil {
		e.unclaimed[store.ID] = ev
	}
	return d
}

// refuseUnclaimed makes whoever waits for a device that nobody serves go on.
func (e *Exporter) refuseUnclaimed(store configfs.Backstore) {
	e.mu.Lock()
	ev, ok := e.unclaimed[store.ID]
	delete(e.unclaimed, store.ID)
	e.mu.Unlock()
	if ok && !e.tree.Enabled(store) {
		e.answer(ev, unix.ENODEV)
	}
}

func (e *Exporter) answer(ev genl.Event, errno unix.Errno) {
	if err := e.events.Done(ev, errno); err != nil {
		e.opts.Logger.Warn("answer to event refused", slog.Int("kind", int(ev.Kind)), slog.String("name", ev.Name), slog.Any("err", err))
	}
}

// errnoOf returns what an error is for the one who waits in the kernel.
func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	var errno unix.Errno
	if errors.As(err, &errno) && errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		return errno
	}
	return unix.EIO
}

// adopt serves a device that another program is making. Everything after its
// ring is that program's affair, down to its removal.
func (e *Exporter) adopt(ev genl.Event, uio configfs.UIO, store configfs.Backstore) {
	err := e.serveForeign(uio, store)
	if err != nil {
		e.opts.Logger.Error("device not adopted", slog.String("id", store.ID), slog.Any("err", err))
	}
	e.answer(ev, errnoOf(err))
}

func (e *Exporter) serveForeign(uio configfs.UIO, store configfs.Backstore) error {
	ctx := context.Background()
	v, err := e.opts.Adopt(ctx, store.ID, uio.Config)
	if err != nil {
		return err
	}
	d := e.newDevice(ctx, store.ID, v)
	made, err := e.devices.Add(store.ID, d)
	if err != nil {
		d.cancel()
		return errors.Join(err, v.Close())
	}
	defer made()
	err = e.tree.SetSize(store, v.Size())
	if err == nil {
		err = d.connect(ctx, uio, unprepared)
	}
	if err != nil {
		d.cancel()
		e.forget(d)
		return errors.Join(err, v.Close())
	}
	d.foreign = true
	go d.watch()
	return nil
}

// unprepared is for a new ring, which nothing needs to be done to.
func unprepared() error { return nil }
