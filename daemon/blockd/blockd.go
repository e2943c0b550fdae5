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
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/loader"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// DefaultPatience is how long a device read waits for its source to come back.
// An EIO outlives the outage in the file system above, so minutes; a reader in
// uninterruptible sleep cannot be killed, so not days.
const DefaultPatience = 5 * time.Minute

// Options say what a Daemon is made of.
type Options struct {
	StateDir string         // required; where devices are remembered across restarts
	Blobs    fetcher.Opener // required; what layers are opened through
	Patience time.Duration  // DefaultPatience if zero
	Logger   *slog.Logger   // required

	// Disk is how writable layers are opened.
	Disk image.DiskOptions

	// Warm prepares for reads of the repository whose blobs have this URL; nil
	// for nothing.
	Warm func(ctx context.Context, blobs string) error

	// Reach finds out where reads of a blob lead, for those to come; nil does
	// nothing.
	Reach func(ctx context.Context, blob fetcher.Ref) error

	// Downloads brings layers to the node; nil for none.
	Downloads *download.Downloader

	// Loader says how much is fetched ahead of programs that start from
	// images: nothing if it is nil.
	Loader *loader.Options
}

// A Daemon implements blockapi.Service.
type Daemon struct {
	opts    Options
	records records
	former  map[string]record // by id, as an earlier process has left them
	locks   keyedMutex        // serialises the calls for one id

	expected *expectations // what layers are opened through

	first     Exporter                    // of new devices
	exporters map[string]backend.Exporter // all, by name; since Start

	life context.Context // of resuming devices
	end  context.CancelFunc
	work sync.WaitGroup // what resumes them

	mu      sync.Mutex // guards devices, not what they point to, which does not change; never held across I/O
	devices map[string]*device
}

var _ blockapi.Service = (*Daemon)(nil)

// New returns a Daemon, to be started.
func New(opts Options) (*Daemon, error) {
	opts.Patience = cmp.Or(opts.Patience, DefaultPatience)
	recs, err := openRecords(opts.StateDir)
	if err != nil {
		return nil, err
	}
	former, err := recs.all()
	if err != nil {
		return nil, fmt.Errorf("read records of devices: %w", err)
	}
	d := &Daemon{opts: opts, records: recs, former: former, exporters: make(map[string]backend.Exporter), devices: make(map[string]*device)}
	d.expected = newExpectations(opts.Blobs, opts.Logger)
	d.life, d.end = context.WithCancel(context.Background())
	return d, nil
}

// Attach implements blockapi.Service.
func (d *Daemon) Attach(ctx context.Context, id, specPath string) (blockapi.Attachment, error) {
	if err := checkID(id); err != nil {
		return blockapi.Attachment{}, err
	}
	if !filepath.IsAbs(specPath) {
		return blockapi.Attachment{}, fmt.Errorf("attach %s: spec path %q is not absolute: %w", id, specPath, errdefs.ErrInvalidArgument)
	}
	unlock, err := d.locks.lock(ctx, id)
	if err != nil {
		return blockapi.Attachment{}, err
	}
	defer unlock()
	dev, err := d.existing(ctx, id, specPath)
	if err == nil && dev == nil {
		dev, err = d.attach(ctx, id, specPath)
	}
	if err != nil {
		return blockapi.Attachment{}, fmt.Errorf("attach %s: %w", id, classify(err))
	}
	return dev.attachment(), nil
}

// existing returns the device id if there is one that serves, or can be made
// to. One that stopped is removed.
func (d *Daemon) existing(ctx context.Context, id, specPath string) (*device, error) {
	dev := d.device(id)
	switch {
	case dev == nil:
		return nil, nil
	case dev.specPath != specPath:
		return nil, fmt.Errorf("device serves %s: %w", dev.specPath, errdefs.ErrAlreadyExists)
	case dev.live == nil:
		return d.resume(ctx, dev)
	case dev.stopped():
		if err := d.remove(ctx, dev); err != nil {
			return nil, fmt.Errorf("replace stopped device: %w", err)
		}
		return nil, nil
	}
	return dev, nil
}

func (d *Daemon) attach(ctx context.Context, id, specPath string) (*device, error) {
	start := time.Now()
	v, err := spec.Load(specPath)
	if err != nil {
		return nil, err
	}
	dev := d.newDevice(id, specPath, d.first.Name)
	err = d.make(ctx, dev, v)
	d.report(dev, v, err)
	if err != nil {
		return nil, err
	}
	d.put(dev)
	d.opts.Logger.Info("device attached", slog.String("id", id), slog.String("path", dev.live.Path()),
		slog.Int("layers", len(v.Lowers)), slog.Bool("writable", v.Writable()), slog.Duration("dur", time.Since(start)))
	go d.watch(dev)
	return dev, nil
}

// make builds the device dev: layers, patience, record, kernel object. After
// an error nothing is left.
func (d *Daemon) make(ctx context.Context, dev *device, v *spec.Volume) error {
	vol, err := d.openVolume(ctx, dev, v)
	if err != nil {
		return err
	}
	if err := d.records.save(dev.id, record{Spec: dev.specPath, Exporter: dev.exporter}); err != nil {
		return errors.Join(err, vol.Close())
	}
	live, err := d.first.Export(ctx, dev.id, vol)
	if err != nil {
		return errors.Join(err, vol.Close(), d.records.remove(dev.id))
	}
	if err := dev.serve(live); err != nil {
		return errors.Join(err, live.Remove(context.WithoutCancel(ctx)), d.records.remove(dev.id))
	}
	return nil
}

// openVolume opens what dev shows.
func (d *Daemon) openVolume(ctx context.Context, dev *device, v *spec.Volume) (backend.Volume, error) {
	d.warmTargets(v)
	vol, err := d.openLayers(ctx, v, d.layers(dev, v))
	if err != nil {
		return nil, err
	}
	dev.image, dev.writable, dev.size = v.RepoBlobURL, v.Writable(), vol.Size()
	return dev.patience.wrap(vol), nil
}

func (d *Daemon) openLayers(ctx context.Context, v *spec.Volume, blobs fetcher.Opener) (backend.Volume, error) {
	if v.Writable() {
		return image.OpenDisk(ctx, v, blobs, d.opts.Disk)
	}
	i, err := image.Open(ctx, v, blobs)
	if err != nil {
		return nil, err
	}
	if d.opts.Loader == nil {
		return i, nil
	}
	return loader.Wrap(i, *d.opts.Loader), nil
}

// SpecPath returns what the device id serves, which the reference's daemon
// finds it by; "" if there is none.
func (d *Daemon) SpecPath(id string) string {
	rec, err := d.records.load(id)
	if err != nil {
		return ""
	}
	return rec.Spec
}

// Adopt opens the volume of a device that another program makes, and whose
// configuration is that of the reference: the path of a spec.
func (d *Daemon) Adopt(ctx context.Context, id, config string) (backend.Volume, error) {
	dev := d.newDevice(id, specPathOf(config), "")
	v, err := spec.Load(dev.specPath)
	if err != nil {
		return nil, err
	}
	vol, err := d.openVolume(ctx, dev, v)
	d.report(dev, v, err)
	if err == nil {
		d.opts.Logger.Info("device of another program adopted", slog.String("id", id), slog.String("spec", dev.specPath))
	}
	return vol, err
}

// watch logs the end of a device that nobody asked to end. The device stays in
// the table as failed until it is attached anew or detached, except for one
// that another program made, and has removed.
func (d *Daemon) watch(dev *device) {
	<-dev.live.Done()
	err := dev.live.Err()
	if err == nil || d.life.Err() != nil {
		return
	}
	if dev.foreign {
		err = d.clear(dev)
	}
	if err != nil {
		d.opts.Logger.Error("device stopped", slog.String("id", dev.id), slog.Any("err", err))
	}
}

// clear removes what is left of a device that was removed from outside, unless
// somebody has done so.
func (d *Daemon) clear(dev *device) error {
	unlock, err := d.locks.lock(d.life, dev.id)
	if err != nil {
		return err
	}
	defer unlock()
	if d.device(dev.id) != dev {
		return nil
	}
	return d.remove(d.life, dev)
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
	remove := func(ctx context.Context) error { return d.discard(ctx, dev) }
	if dev.live != nil {
		remove = dev.live.Remove
	}
	if err := remove(ctx); err != nil {
		return err
	}
	return d.forget(dev.id)
}

// forget takes a device that is gone out of records and table.
func (d *Daemon) forget(id string) error {
	if err := d.records.remove(id); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.devices, id)
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
		return fmt.Errorf("seal %s: device %s is attached: %w", specPath, dev.id, errdefs.ErrFailedPrecondition)
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

// Close removes the devices that end with the process, and fails with
// backend.ErrBusy naming those that are in use. Devices that outlive it stay as
// they are: they last until they are detached.
func (d *Daemon) Close(ctx context.Context) error {
	d.end()
	d.expected.close()
	d.work.Wait()
	var errs []error
	for _, dev := range d.all() {
		if _, outlives := d.exporters[dev.exporter].(backend.Recoverer); outlives {
			continue
		}
		if err := d.Detach(ctx, dev.id); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Daemon) put(dev *device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.devices[dev.id] = dev
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
	slices.SortFunc(devs, func(a, b *device) int { return cmp.Compare(a.id, b.id) })
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
