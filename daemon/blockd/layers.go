// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// layers returns what the layers of v are opened through for dev: they are
// metered and, where there are downloads, brought to the node.
func (d *Daemon) layers(dev *device, v *spec.Volume) fetcher.Opener {
	blobs := dev.meter.opener(d.expected)
	if d.opts.Downloads == nil {
		return blobs
	}
	dev.layers = d.opts.Downloads.Volume(v, blobs)
	return dev.layers
}
