// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"

	"github.com/opencontainers/go-digest"

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
	return layerOpener{dev.layers, blobs}
}

// A layerOpener opens layers to be downloaded, and what is made of others, of
// which nothing else is brought to the node.
type layerOpener struct {
	fetcher.Opener
	others fetcher.Opener
}

var _ fetcher.Keeper = layerOpener{}

func (o layerOpener) OpenMade(ctx context.Context, ref fetcher.Ref, key digest.Digest, mk fetcher.Maker) (fetcher.Blob, error) {
	return fetcher.OpenMade(ctx, o.others, ref, key, mk)
}
