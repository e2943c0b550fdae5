// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"errors"
	"os"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
)

// A device is one entry of the table.
type device struct {
	backend.Device
	specPath string
	image    string
	writable bool
	file     bool  // Path is a regular file
	size     int64 // bytes

	patience *patience
	meter    meter
}

// export makes the kernel object of d.
func (d *device) export(ctx context.Context, e backend.Exporter, id string, vol backend.Volume) error {
	dev, err := e.Export(ctx, id, vol)
	if err != nil {
		return err
	}
	d.Device = dev
	st, err := os.Stat(dev.Path())
	if err != nil {
		return errors.Join(err, dev.Remove(context.WithoutCancel(ctx)))
	}
	d.file = st.Mode().IsRegular()
	return nil
}

func (d *device) stopped() bool {
	select {
	case <-d.Done():
		return true
	default:
		return false
	}
}

func (d *device) attachment() blockapi.Attachment {
	a := blockapi.Attachment{
		ID:       d.ID(),
		SpecPath: d.specPath,
		Path:     d.Path(),
		File:     d.file,
		Writable: d.writable,
		Size:     d.size,
		Image:    d.image,
	}
	a.State, a.Error = d.state()
	a.FetchedBytes, a.CachedBytes = d.meter.bytes()
	return a
}

func (d *device) state() (blockapi.State, string) {
	if d.stopped() {
		if err := d.Err(); err != nil {
			return blockapi.Failed, err.Error()
		}
		return blockapi.Failed, "removed"
	}
	if why := d.patience.waitingFor(); why != nil {
		return blockapi.Waiting, why.Error()
	}
	return blockapi.Serving, ""
}

// reportResult writes the outcome of opening a volume where the reference's
// snapshotter looks for it.
func reportResult(path string, err error) error {
	if path == "" {
		return nil
	}
	text := "success"
	if err != nil {
		text = "failed:" + err.Error()
	}
	return os.WriteFile(path, []byte(text), 0o600)
}
