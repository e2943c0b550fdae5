// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
)

// heraldTimeout bounds one call. The block daemon answers at once if it is
// there.
const heraldTimeout = 5 * time.Second

// configFlag tells where the block daemon is.
func configFlag() cli.Flag {
	return &cli.StringFlag{
		Name:    "overlaybd-config",
		Usage:   "Configuration of the snapshotter, whose block daemon is told what is being pulled",
		Value:   conf.DefaultPath,
		Sources: cli.EnvVars("OVERLAYBD_CONFIG"),
	}
}

// A herald tells the block daemon what an image that is being pulled will want
// of it, so that it makes its requests beside those of the pull. It does so in
// the background, and where that fails, the daemon will find out by itself.
// Credentials stay where they are: the daemon has its own.
type herald struct {
	client     *blockapi.Client // nil: there is nobody to tell
	repository string

	ctx    context.Context //nolint:containedctx // ends with close
	cancel context.CancelFunc
	calls  sync.WaitGroup
}

// newHerald returns a herald for the image ref, which is to be closed.
func newHerald(ctx context.Context, cmd *cli.Command, ref string) (*herald, error) {
	h := new(herald)
	h.ctx, h.cancel = context.WithCancel(ctx)
	if cmd.Bool("download-blobs") {
		return h, nil
	}
	cfg, _, err := conf.Load(cmd.String("overlaybd-config"))
	if err != nil && cmd.IsSet("overlaybd-config") {
		return nil, err
	}
	if err != nil {
		cfg = conf.Default()
	}
	repository, err := snapshotter.BlobURL(ref, cfg.Registry.PlainHTTP)
	if err != nil {
		return h, nil //nolint:nilerr // whoever pulls it will say so
	}
	client, err := blockapi.Dial(cfg.Blockd.Address)
	if err != nil {
		return nil, err
	}
	h.client, h.repository = client, repository
	return h, nil
}

// expect announces blobs of the image; with none, that there will be some.
func (h *herald) expect(blobs ...blockapi.Blob) {
	if h.client == nil {
		return
	}
	h.calls.Go(func() {
		ctx, cancel := context.WithTimeout(h.ctx, heraldTimeout)
		defer cancel()
		_ = h.client.Expect(ctx, h.repository, blobs...) // see above
	})
}

// close ends calls that have no answer yet.
func (h *herald) close() {
	h.cancel()
	h.calls.Wait()
	if h.client != nil {
		_ = h.client.Close()
	}
}

// watch returns next with the layers of each manifest announced as soon as
// they are known: before the manifest is stored, if it is in its descriptor.
func (h *herald) watch(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		var m ocispec.Manifest
		early := json.Unmarshal(desc.Data, &m) == nil && h.announce(m.Layers)
		children, err := next.Handle(ctx, desc)
		if err == nil && !early {
			h.announce(children)
		}
		return children, err
	})
}

// announce expects those of all that are layers of a block image, and reports
// whether there are any.
func (h *herald) announce(all []ocispec.Descriptor) bool {
	blobs := blockLayers(all)
	if len(blobs) > 0 {
		h.expect(blobs...)
	}
	return len(blobs) > 0
}

// blockLayers returns those of all that are layers of a block image and stay in
// the registry.
func blockLayers(all []ocispec.Descriptor) (blobs []blockapi.Blob) {
	for _, d := range all {
		dgst, size := d.Annotations[snapshotter.LabelBlobDigest], d.Annotations[snapshotter.LabelBlobSize]
		if n, err := strconv.ParseInt(size, 10, 64); err == nil && dgst != "" {
			blobs = append(blobs, blockapi.Blob{
				Digest: digest.Digest(dgst), Size: n,
				Target: digest.Digest(snapshotter.TargetOf(d.Annotations)),
			})
		}
	}
	return blobs
}
