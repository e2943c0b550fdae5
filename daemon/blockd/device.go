// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"log/slog"
	"os"
	"path/filepath"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// A device is one entry of the table.
type device struct {
	id       string
	specPath string
	exporter string
	foreign  bool // made by another program
	image    string
	writable bool
	size     int64 // bytes

	live backend.Device // nil while the device is suspended
	why  error          // it is
	file bool           // its path is a regular file

	patience *patience
	meter    meter
	layers   *download.Volume // nil if nothing is downloaded
}

func (d *Daemon) newDevice(id, specPath, exporter string) *device {
	return &device{
		id: id, specPath: specPath, exporter: exporter,
		patience: newPatience(d.opts.Patience, d.opts.Logger.With(slog.String("id", id))),
	}
}

// serve makes live the kernel object of d.
func (d *device) serve(live backend.Device) error {
	d.live = live
	st, err := os.Stat(live.Path())
	if err != nil {
		return err
	}
	d.file = st.Mode().IsRegular()
	return nil
}

func (d *device) stopped() bool {
	select {
	case <-d.live.Done():
		return true
	default:
		return false
	}
}

func (d *device) attachment() blockapi.Attachment {
	a := blockapi.Attachment{
		ID:       d.id,
		SpecPath: d.specPath,
		Exporter: d.exporter,
		File:     d.file,
		Writable: d.writable,
		Size:     d.size,
		Image:    d.image,
	}
	if d.live != nil {
		a.Path = d.live.Path()
	}
	a.State, a.Error = d.state()
	a.FetchedBytes, a.CachedBytes = d.meter.bytes()
	a.Near = d.live != nil && d.meter.near()
	if d.layers != nil {
		a.LocalBytes, a.LayerBytes = d.layers.Progress()
	}
	return a
}

func (d *device) state() (blockapi.State, string) {
	if d.live == nil {
		return blockapi.Suspended, d.why.Error()
	}
	if d.stopped() {
		if err := d.live.Err(); err != nil {
			return blockapi.Failed, err.Error()
		}
		return blockapi.Failed, "removed"
	}
	if why := d.patience.waitingFor(); why != nil {
		return blockapi.Waiting, why.Error()
	}
	return blockapi.Serving, ""
}

// report writes the outcome of opening a volume where the reference's
// snapshotter looks for it.
func (d *Daemon) report(dev *device, v *spec.Volume, err error) {
	if v.ResultFile == "" {
		return
	}
	path, text := v.ResultFile, "success"
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(dev.specPath), path)
	}
	if err != nil {
		text = "failed:" + err.Error()
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.opts.Logger.Warn("result file not written", slog.String("id", dev.id), slog.Any("err", err))
	}
}
