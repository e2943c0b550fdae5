// SPDX-License-Identifier: Apache-2.0

// Package fuse exports a volume as a file that stands in for a block device.
// It is the exporter for kernels without TCM user or ublk: all it needs is
// /dev/fuse.
//
// Every device is a FUSE mount of its own at Dir/<id> with the one file
// "block" in it, so that abort, hang and teardown are per device. The file is
// put to use through a loop device, or by mounting EROFS straight from it with
// mount(2). One that is read-only has a page cache, which the kernel reads ahead
// into. Who has one of his own reads with O_DIRECT, as a loop device with direct
// I/O does: that is faster, most of all for concurrent reads (BenchmarkRead).
//
// Three things to know:
//
//   - The process that serves a device must not wait for it: it neither mounts
//     nor fsyncs what lies above.
//   - Devices die with the process: readers get errors, and [New] in the next
//     process clears the dead mounts away. A device whose volume hangs makes
//     its readers unkillable; [Device.Abort] frees them.
//   - Reads are safe under memory pressure. Writes are safe only while the
//     serving process never waits for the reclaim of pages that it must itself
//     write back: a writable volume keeps its data files out of the page cache
//     (O_DIRECT), and the process stays out of the memory cgroups of the
//     workloads above it.
package fuse

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/roster"
)

// Options says where and how devices appear.
type Options struct {
	// Dir holds the devices: Dir/<id>/block. It belongs to the exporter alone.
	Dir string

	// MaxBackground is how many requests of up to 1 MiB a device handles at the
	// same time; 64 if zero.
	MaxBackground int

	// Logger takes what the FUSE library has to say when it fails; it may be
	// nil.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.MaxBackground <= 0 {
		o.MaxBackground = 64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// An Exporter makes FUSE devices below one directory.
type Exporter struct {
	opts    Options
	buffers buffers

	devices roster.Roster[*Device]
}

var _ backend.Exporter = (*Exporter)(nil)

// New returns an exporter of devices in opts.Dir, which it makes if need be.
// Dead mounts that an earlier process left there are taken away; a mount there
// that is still served is an error.
func New(opts Options) (*Exporter, error) {
	opts.setDefaults()
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}
	opts.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	if err := clearLeftovers(dir); err != nil {
		return nil, err
	}
	return &Exporter{opts: opts}, nil
}

// Export makes the device id, a *[Device].
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
	if n := v.Size(); n < 0 || n%backend.SectorSize != 0 {
		return nil, fmt.Errorf("volume of %d bytes: not whole sectors", n)
	}
	d := newDevice(ctx, id, filepath.Join(e.opts.Dir, id), v, &e.buffers)
	made, err := e.devices.Add(id, d)
	if err != nil {
		d.cancel()
		return nil, err
	}
	defer made()
	forget := func() { e.devices.Drop(id, d) }
	if err := d.start(e.opts, forget); err != nil {
		d.cancel()
		forget()
		return nil, err
	}
	return d, nil
}

func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > unix.NAME_MAX || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("id is not a file name: %w", fs.ErrInvalid)
	}
	return nil
}

// Close removes every device. It fails with backend.ErrBusy, and leaves those
// devices as they are, while some are in use; the exporter is closed when it
// returns nil, and makes no new device as soon as it is called.
func (e *Exporter) Close() error {
	return e.devices.Close(func(d *Device) error { return d.Remove(context.Background()) })
}
