// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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

var (
	errNotAsked  = errors.New("another device")
	errNotServed = errors.New("being taken over from an earlier process")
)

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
func (d *Daemon) Former() (names []string, err error) {
	recs, err := d.records.all()
	seen := make(map[string]bool)
	for _, rec := range recs {
		if !seen[rec.Exporter] {
			names = append(names, rec.Exporter)
		}
		seen[rec.Exporter] = true
	}
	return names, err
}

// Start makes d serve. New devices are made by the first exporter; all devices
// that earlier processes left in any of them are in the table when Start
// returns, and are taken over one by one from then on. It is called once,
// before the methods of blockapi.Service.
func (d *Daemon) Start(ctx context.Context, first Exporter, former ...Exporter) error {
	d.first = first
	recs, err := d.records.all()
	if err != nil {
		return fmt.Errorf("read records of devices: %w", err)
	}
	for _, e := range append(former, first) {
		d.exporters[e.Name] = e.Exporter
		if r, ok := e.Exporter.(backend.Recoverer); ok {
			d.find(ctx, e, r, recs)
		}
	}
	for id := range recs {
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
func (d *Daemon) find(ctx context.Context, e Exporter, r backend.Recoverer, recs map[string]record) {
	_, err := r.Recover(ctx, func(_ context.Context, id string) (backend.Volume, error) {
		d.put(d.suspended(id, e, recs))
		return nil, errNotAsked
	})
	if err := without(err, errNotAsked); err != nil {
		d.opts.Logger.Warn("what is left of a device is not removed", slog.String("exporter", e.Name), slog.Any("err", err))
	}
}

// suspended returns the entry of a device that is not served yet. What other
// programs have made, and their daemon served, there is no record of.
func (d *Daemon) suspended(id string, e Exporter, recs map[string]record) *device {
	path := recs[id].Spec
	_, known := recs[id]
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

// without returns err less those of the errors joined in it that are target.
func without(err, target error) error {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		if errors.Is(err, target) {
			return nil
		}
		return err
	}
	var rest []error
	for _, e := range joined.Unwrap() {
		if !errors.Is(e, target) {
			rest = append(rest, e)
		}
	}
	return errors.Join(rest...)
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
	live, err := d.takeOver(ctx, dev, d.reopen)
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

// takeOver has its exporter recover dev, and no other device, on the volume
// that open returns. It returns nil if there is none any more.
func (d *Daemon) takeOver(ctx context.Context, dev *device, open func(context.Context, *device) (backend.Volume, error)) (backend.Device, error) {
	r, ok := d.exporters[dev.exporter].(backend.Recoverer)
	if !ok {
		return nil, fmt.Errorf("exporter %s: %w", dev.exporter, errors.ErrUnsupported)
	}
	all, err := r.Recover(ctx, func(ctx context.Context, id string) (backend.Volume, error) {
		if id != dev.id {
			return nil, errNotAsked
		}
		return open(ctx, dev)
	})
	if len(all) > 0 {
		return all[0], nil
	}
	return nil, without(err, errNotAsked)
}

// reopen opens the volume of a device that exists. One whose spec is gone
// belongs to nobody.
func (d *Daemon) reopen(ctx context.Context, dev *device) (backend.Volume, error) {
	v, err := spec.Load(dev.specPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", backend.ErrOrphan, err)
	}
	if err != nil {
		return nil, err
	}
	return d.openVolume(ctx, dev, v)
}

// removeSuspended removes a device that is not served, whose lock is held,
// without opening its volume.
func (d *Daemon) removeSuspended(ctx context.Context, dev *device) error {
	_, err := d.takeOver(ctx, dev, func(context.Context, *device) (backend.Volume, error) {
		return nil, backend.ErrOrphan
	})
	if err != nil {
		return err
	}
	return d.forget(dev.id)
}
