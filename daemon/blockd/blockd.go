// SPDX-License-Identifier: Apache-2.0

// Package blockd is the block daemon's one service: it turns volume specs into
// block devices and keeps a table of those it serves.
//
// The table is a cache. What should exist is in the spec files, what does
// exist is in the kernel; the daemon can be killed at any instant and loses
// nothing but the reads in flight.
package blockd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// DefaultPatience is how long a device read waits for its source to come back.
// An EIO outlives the outage in the file system above, so minutes; a reader in
// uninterruptible sleep cannot be killed, so not days.
const DefaultPatience = 5 * time.Minute

// Options say what a Daemon is made of.
type Options struct {
	Exporter backend.Exporter // required
	Blobs    fetcher.Opener   // required; what layers are opened through
	Patience time.Duration    // DefaultPatience if zero
	Logger   *slog.Logger     // required

	// Disk is how writable layers are opened.
	Disk image.DiskOptions
}

// A Daemon implements blockapi.Service over one exporter.
type Daemon struct {
	opts  Options
	locks keyedMutex // serialises the calls for one id

	mu      sync.Mutex // guards devices; never held across I/O
	devices map[string]*device
}

var _ blockapi.Service = (*Daemon)(nil)

// New returns a Daemon that serves no devices yet.
func New(opts Options) *Daemon {
	opts.Patience = cmp.Or(opts.Patience, DefaultPatience)
	return &Daemon{opts: opts, devices: make(map[string]*device)}
}

// Attach implements blockapi.Service.
func (d *Daemon) Attach(ctx context.Context, id, specPath string) (blockapi.Attachment, error) {
	unlock, err := d.locks.lock(ctx, id)
	if err != nil {
		return blockapi.Attachment{}, err
	}
	defer unlock()

	if dev := d.device(id); dev != nil {
		if dev.specPath != specPath {
			return blockapi.Attachment{}, fmt.Errorf("device %s serves %s: %w", id, dev.specPath, errdefs.ErrAlreadyExists)
		}
		if !dev.stopped() {
			return dev.attachment(), nil
		}
		if err := d.remove(ctx, dev); err != nil {
			return blockapi.Attachment{}, fmt.Errorf("replace stopped device %s: %w", id, err)
		}
	}
	dev, err := d.attach(ctx, id, specPath)
	if err != nil {
		return blockapi.Attachment{}, fmt.Errorf("attach %s: %w", id, classify(err))
	}
	return dev.attachment(), nil
}

func (d *Daemon) attach(ctx context.Context, id, specPath string) (*device, error) {
	start := time.Now()
	v, err := spec.Load(specPath)
	if err != nil {
		return nil, err
	}
	dev, err := d.open(ctx, id, specPath, v)
	if rerr := reportResult(v.ResultFile, err); rerr != nil {
		d.opts.Logger.Warn("result file not written", slog.String("id", id), slog.Any("err", rerr))
	}
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.devices[id] = dev
	d.mu.Unlock()
	d.opts.Logger.Info("device attached", slog.String("id", id), slog.String("path", dev.Path()),
		slog.Int("layers", len(v.Lowers)), slog.Bool("writable", v.Writable()), slog.Duration("dur", time.Since(start)))
	go d.watch(dev)
	return dev, nil
}

// open builds the device id: layers, patience, kernel object.
func (d *Daemon) open(ctx context.Context, id, specPath string, v *spec.Volume) (*device, error) {
	dev := &device{specPath: specPath, image: v.RepoBlobURL, writable: v.Writable()}
	vol, err := d.openVolume(ctx, v, &dev.meter)
	if err != nil {
		return nil, err
	}
	dev.size = vol.Size()
	dev.patience = newPatience(d.opts.Patience, d.opts.Logger.With(slog.String("id", id)))
	if err := dev.export(ctx, d.opts.Exporter, id, dev.patience.wrap(vol)); err != nil {
		return nil, errors.Join(err, vol.Close())
	}
	return dev, nil
}

func (d *Daemon) openVolume(ctx context.Context, v *spec.Volume, m *meter) (backend.Volume, error) {
	blobs := m.opener(d.opts.Blobs)
	if v.Writable() {
		return image.OpenDisk(ctx, v, blobs, d.opts.Disk)
	}
	return image.Open(ctx, v, blobs)
}

// watch logs the end of a device that nobody asked to end. The device stays in
// the table as failed until it is attached anew or detached.
func (d *Daemon) watch(dev *device) {
	<-dev.Done()
	if err := dev.Err(); err != nil {
		d.opts.Logger.Error("device stopped", slog.String("id", dev.ID()), slog.Any("err", err))
	}
}

// Detach implements blockapi.Service.
func (d *Daemon) Detach(ctx context.Context, id string) error {
	unlock, err := d.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	dev := d.device(id)
	if dev == nil {
		return nil
	}
	if err := d.remove(ctx, dev); err != nil {
		return fmt.Errorf("detach %s: %w", id, classify(err))
	}
	d.opts.Logger.Info("device detached", slog.String("id", id))
	return nil
}

func (d *Daemon) remove(ctx context.Context, dev *device) error {
	if err := dev.Remove(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.devices, dev.ID())
	d.mu.Unlock()
	return nil
}

// Attachments implements blockapi.Service.
func (d *Daemon) Attachments(context.Context) ([]blockapi.Attachment, error) {
	var list []blockapi.Attachment
	for _, dev := range d.all() {
		list = append(list, dev.attachment())
	}
	return list, nil
}

// Seal implements blockapi.Service.
func (d *Daemon) Seal(ctx context.Context, specPath, dst string) error {
	if dev := d.serving(specPath); dev != nil {
		return fmt.Errorf("seal %s: device %s is attached: %w", specPath, dev.ID(), errdefs.ErrFailedPrecondition)
	}
	v, err := spec.Load(specPath)
	if err != nil {
		return err
	}
	if !v.Writable() {
		return fmt.Errorf("seal %s: no writable layer: %w", specPath, errdefs.ErrInvalidArgument)
	}
	return image.Seal(ctx, v.Upper, dst)
}

// Close removes every device that is not in use, and fails with
// backend.ErrBusy naming those that are.
func (d *Daemon) Close(ctx context.Context) error {
	var errs []error
	for _, dev := range d.all() {
		if err := d.Detach(ctx, dev.ID()); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Daemon) device(id string) *device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.devices[id]
}

// all returns the devices ordered by id.
func (d *Daemon) all() []*device {
	d.mu.Lock()
	defer d.mu.Unlock()
	devs := slices.Collect(maps.Values(d.devices))
	slices.SortFunc(devs, func(a, b *device) int { return cmp.Compare(a.ID(), b.ID()) })
	return devs
}

func (d *Daemon) serving(specPath string) *device {
	for _, dev := range d.all() {
		if dev.specPath == specPath {
			return dev
		}
	}
	return nil
}
