// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

const (
	// parallelResumes is how many devices are resumed at once after a start.
	parallelResumes = 16

	// The pause between two tries to resume a device doubles from the first to
	// the last of these.
	minResumePause = time.Second
	maxResumePause = time.Minute
)

var errNotServed = errors.New("being taken over from an earlier process")

// An Exporter is a backend's, with its name in the configuration.
type Exporter struct {
	Name string
	backend.Exporter
}

// A configurer tells what a device was configured with, by whoever made it:
// what the reference's daemon expects is in there, the path of a spec.
type configurer interface {
	Config(id string) (string, error)
}

// Former returns the names of the exporters of the devices that an earlier
// process has left a record of.
func (d *Daemon) Former() []string {
	names := make(map[string]bool)
	for _, rec := range d.former {
		names[rec.Exporter] = true
	}
	return slices.Collect(maps.Keys(names))
}

// Start makes d serve. New devices are made by the first exporter; all devices
// that earlier processes left in any of them are in the table when Start
// returns, and are taken over one by one from then on. It is called once,
// before the methods of blockapi.Service.
func (d *Daemon) Start(ctx context.Context, first Exporter, former ...Exporter) error {
	d.first = first
	for _, e := range append(former, first) {
		d.exporters[e.Name] = e.Exporter
		if r, ok := e.Exporter.(backend.Recoverer); ok {
			d.find(ctx, e, r)
		}
	}
	for id := range d.former {
		if d.device(id) == nil { // it ended with its process, or before
			if err := d.records.remove(id); err != nil {
				return err
			}
		}
	}
	turn := make(chan struct{}, parallelResumes)
	for _, dev := range d.all() {
		d.work.Go(func() { d.keepResuming(dev.id, turn) })
	}
	return nil
}

// find puts the devices that an earlier process left in an exporter into the
// table, and has what is left of half-made ones removed.
func (d *Daemon) find(ctx context.Context, e Exporter, r backend.Recoverer) {
	ids, err := r.Left(ctx)
	if err != nil {
		d.opts.Logger.Warn("what is left of a device is not removed", slog.String("exporter", e.Name), slog.Any("err", err))
	}
	for _, id := range ids {
		d.put(d.suspended(id, e))
	}
}

// suspended returns the entry of a device that is not served yet. What other
// programs have made, and their daemon served, there is no record of.
func (d *Daemon) suspended(id string, e Exporter) *device {
	rec, known := d.former[id]
	path := rec.Spec
	if c, ok := e.Exporter.(configurer); ok && !known {
		config, err := c.Config(id)
		if err != nil {
			d.opts.Logger.Warn("device without a configuration", slog.String("id", id), slog.Any("err", err))
		}
		path = specPathOf(config)
	}
	dev := d.newDevice(id, path, e.Name)
	dev.foreign = !known
	dev.why = errNotServed
	return dev
}

// specPathOf returns the path in a configuration. The reference may append
// the device's id to it.
func specPathOf(config string) string {
	path, _, _ := strings.Cut(config, ";")
	return path
}

// keepResuming tries until the device is served, or gone: nobody else may ask
// for it, while those who use it wait.
func (d *Daemon) keepResuming(id string, turn chan struct{}) {
	for pause := minResumePause; ; pause = min(2*pause, maxResumePause) {
		turn <- struct{}{}
		over := d.tryResume(id)
		<-turn
		if over || sleep(d.life, pause) != nil {
			return
		}
	}
}

func (d *Daemon) tryResume(id string) (over bool) {
	unlock, err := d.locks.lock(d.life, id)
	if err != nil {
		return true
	}
	defer unlock()
	old := d.device(id)
	if old == nil || old.live != nil {
		return true
	}
	dev, err := d.resume(d.life, old)
	switch {
	case err != nil && d.life.Err() == nil && err.Error() != old.why.Error():
		d.opts.Logger.Error("device not resumed, its users wait", slog.String("id", id), slog.Any("err", err))
	case err == nil && dev == nil:
		d.opts.Logger.Info("device that belongs to nobody removed", slog.String("id", id), slog.String("spec", old.specPath))
	}
	return err == nil
}

// resume serves a suspended device, whose lock is held. It returns nil if the
// device is gone, or belonged to nobody and was removed.
func (d *Daemon) resume(ctx context.Context, old *device) (*device, error) {
	dev := d.newDevice(old.id, old.specPath, old.exporter)
	dev.foreign = old.foreign
	live, err := d.takeOver(ctx, dev)
	switch {
	case err != nil:
		dev.why = err
		d.put(dev)
		return nil, err
	case live == nil:
		return nil, d.forget(old.id)
	}
	err = dev.serve(live)
	d.put(dev)
	go d.watch(dev)
	d.opts.Logger.Info("device resumed", slog.String("id", dev.id), slog.String("path", live.Path()))
	return dev, err
}

// takeOver has its exporter resume dev. It returns nil if there is none any
// more: a device whose spec is gone belongs to nobody.
func (d *Daemon) takeOver(ctx context.Context, dev *device) (backend.Device, error) {
	v, err := spec.Load(dev.specPath)
	if errors.Is(err, fs.ErrNotExist) {
		if e := d.discard(ctx, dev); e != nil {
			return nil, fmt.Errorf("it belongs to nobody: %w: %w", err, e)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	vol, err := d.openVolume(ctx, dev, v)
	if err != nil {
		return nil, err
	}
	r, err := d.recoverer(dev)
	if err != nil {
		return nil, errors.Join(err, vol.Close())
	}
	live, err := r.Resume(ctx, dev.id, vol)
	switch {
	case errors.Is(err, backend.ErrGone):
		return nil, vol.Close()
	case err != nil:
		return nil, errors.Join(err, vol.Close())
	}
	return live, nil
}

// discard removes a device that is not served.
func (d *Daemon) discard(ctx context.Context, dev *device) error {
	r, err := d.recoverer(dev)
	if err != nil {
		return err
	}
	return r.Discard(ctx, dev.id)
}

// recoverer returns the exporter of a device that outlived its process.
func (d *Daemon) recoverer(dev *device) (backend.Recoverer, error) {
	r, ok := d.exporters[dev.exporter].(backend.Recoverer)
	if !ok {
		return nil, fmt.Errorf("exporter %s: %w", dev.exporter, errors.ErrUnsupported)
	}
	return r, nil
}
