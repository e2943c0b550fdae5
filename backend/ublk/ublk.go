// SPDX-License-Identifier: Apache-2.0

// Package ublk exports volumes as disks through the kernel's driver for block
// devices in user space, ublk_drv, which speaks io_uring. Nothing but the block
// layer is in between: requests come and are answered in batches, and each
// queue of a disk has a thread of its own.
//
// Devices survive the process: their users wait until the next one calls
// [Exporter.Resume].
//
// It takes Linux 6.1. Before 6.5 the data of each request has memory of its own;
// since then devices share buffers. Where a driver cannot let devices survive,
// they end with the process.
//
// Four things to know:
//
//   - What the kernel knows as number 7 is our device only if a record in
//     Options.Dir says so, and bears the tag that the kernel's does. Other
//     devices, whosever they are, are left alone.
//   - A process that recovers devices takes all of them that belong to its
//     tenant: there must not be two.
//   - A process that dies while each request that a queue can hold is under
//     way is noticed when those time out: after 30 s, or what udev writes to
//     queue/io_timeout of the disks. This process must not write there: that
//     waits in the kernel for requests that it has to answer itself, and if it
//     were killed meanwhile it would never let go of them.
//   - Remove cannot see programs in other PID namespaces that have the disk
//     open without having mounted it.
//
// The kernel does not look for partitions on the disks.
package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/roster"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

// Options says what devices are like.
type Options struct {
	// Dir holds what the next process must know of the devices; it need not
	// survive the machine. Exporters of different tenants may share it.
	Dir string

	// Tenant keeps apart the devices of several users of the machine, who may
	// give them the same ids.
	Tenant int

	// Queues is how many queues a device has, each with a thread; if zero, as
	// many as there are processors, but at most 4.
	Queues int

	// QueueDepth is how many requests a queue handles at the same time; 64 if
	// zero.
	QueueDepth int

	// MaxRequest is the most bytes that a request may have, rounded down to
	// pages; 512 KiB if zero.
	MaxRequest int
}

func (o *Options) setDefaults() {
	if o.Queues <= 0 {
		o.Queues = min(runtime.NumCPU(), 4)
	}
	if o.QueueDepth <= 0 {
		o.QueueDepth = 64
	}
	if o.MaxRequest <= 0 {
		o.MaxRequest = 512 << 10
	}
	o.Queues = min(o.Queues, driver.MaxQueues)
	o.QueueDepth = min(o.QueueDepth, driver.MaxDepth)
	o.MaxRequest = min(max(o.MaxRequest&^(pageSize-1), pageSize), driver.MaxRequest)
}

// An Exporter makes disks.
type Exporter struct {
	opts    Options
	control *driver.Control
	host    host
	records records
	buffers *buffers
	close   func() error // of the connection to the driver

	devices roster.Roster[*Device]

	mu      sync.Mutex        // guards all below
	left    map[uint32]string // ids of devices that a record tells of and nobody serves
	numbers map[uint32]bool   // that have a record, or are about to
}

var (
	_ backend.Exporter  = (*Exporter)(nil)
	_ backend.Recoverer = (*Exporter)(nil)
)

// A host is what a device needs of the machine besides the driver's control.
type host struct {
	serve  func(context.Context, driver.Info, handler) (server, error)
	settle func(context.Context, driver.Info) error
	find   func(number uint32, p driver.Params) (node, error)
}

// wanted are the features that make a device better.
const wanted = driver.Recovery | driver.RecoveryReissue | driver.IoctlEncode | driver.UserCopy

// New returns an exporter.
func New(opts Options) (*Exporter, error) { return open(opts, wanted) }

func open(opts Options, use driver.Feature) (*Exporter, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	k, err := driver.Open(driver.ControlPath)
	if err != nil {
		return nil, err
	}
	e, err := newExporter(opts, k, host{serve: serve, settle: settle, find: findNode}, use)
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	e.close = k.Close
	return e, nil
}

func newExporter(opts Options, conn driver.Conn, h host, use driver.Feature) (*Exporter, error) {
	opts.setDefaults()
	if opts.Tenant < 0 {
		return nil, fmt.Errorf("tenant %d is negative", opts.Tenant)
	}
	if opts.Dir == "" {
		return nil, errors.New("no directory for the records of devices")
	}
	control, err := driver.NewControl(context.Background(), conn, use)
	if err != nil {
		return nil, err
	}
	records, err := openRecords(filepath.Join(opts.Dir, strconv.Itoa(opts.Tenant)))
	if err != nil {
		return nil, err
	}
	e := &Exporter{
		opts:    opts,
		control: control,
		host:    h,
		records: records,
		buffers: newBuffers(),
		close:   func() error { return nil },
		left:    make(map[uint32]string),
		numbers: make(map[uint32]bool),
	}
	return e, e.findLeft()
}

// Export makes the device id, a *[Device]. An id is a file name.
func (e *Exporter) Export(ctx context.Context, id string, v backend.Volume) (backend.Device, error) {
	d, err := e.export(ctx, id, v)
	if err != nil {
		return nil, fmt.Errorf("export device %q: %w", id, err)
	}
	return d, nil
}

func (e *Exporter) export(ctx context.Context, id string, v backend.Volume) (*Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkID(id); err != nil {
		return nil, err
	}
	if size := v.Size(); size <= 0 || size%backend.SectorSize != 0 {
		return nil, fmt.Errorf("volume of %d bytes: not whole sectors", size)
	}
	d := e.newDevice(ctx, id, v)
	made, err := e.devices.Add(id, d)
	if err != nil {
		d.cancel()
		return nil, err
	}
	defer made()
	if _, ok := e.leftNumber(id); ok {
		d.cancel()
		e.forget(d)
		return nil, fs.ErrExist
	}
	if err := d.create(ctx); err != nil {
		d.cancel()
		e.forget(d)
		return nil, err
	}
	return d, nil
}

func (e *Exporter) forget(d *Device) { e.devices.Drop(d.id, d) }

// Close removes every device. It fails with backend.ErrBusy, and leaves those
// devices as they are, while some are in use; the exporter is closed when it
// returns nil, and makes no new device as soon as it is called.
func (e *Exporter) Close() error {
	if err := e.devices.Close(func(d *Device) error { return d.Remove(context.Background()) }); err != nil {
		return err
	}
	return e.close()
}

// Abandon stops serving and closes the volumes, but leaves the devices to the
// next process: whoever uses them waits for its Resume.
func (e *Exporter) Abandon() error {
	return errors.Join(e.devices.Close((*Device).abandon), e.close())
}
