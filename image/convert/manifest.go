// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

// Annotations of a block layer's descriptor, which containerd hands to the
// snapshotter as labels. Durable.
const (
	AnnotationDigest  = "containerd.io/snapshot/overlaybd/blob-digest"
	AnnotationSize    = "containerd.io/snapshot/overlaybd/blob-size" // decimal bytes
	AnnotationFSType  = "containerd.io/snapshot/overlaybd/blob-fs-type"
	AnnotationVersion = "containerd.io/snapshot/overlaybd/version"
)

// formatVersion is the value of AnnotationVersion. Durable.
const formatVersion = "0.1.0"

// maxPacking is how many layers are packed while another is applied. Packing
// uses every CPU by itself; the second fills the gaps of the first.
const maxPacking = 2

// A Layer is a layer to be rebuilt.
type Layer struct {
	Source   ocispec.Descriptor
	DiffID   digest.Digest
	ChainID  digest.Digest
	Parent   digest.Digest // chain ID of the layer below, empty at the bottom
	Index    int           // from the bottom
	Count    int           // of the image's layers
	Platform ocispec.Platform
}

// LayerUUID returns the UUID that the block layer of the chain ID has: its
// first 128 bits, in the usual form. It is empty for an empty chain ID, the
// parent of the bottom layer.
func LayerUUID(chainID digest.Digest) string {
	if chainID == "" {
		return ""
	}
	hex := chainID.Encoded()
	return fmt.Sprintf("%s-%s-%s-%s-%s", hex[:8], hex[8:12], hex[12:16], hex[16:20], hex[20:32])
}

// manifest converts one image.
func (w *walk) manifest(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	img, err := w.open(ctx, desc)
	if err != nil {
		return desc, fmt.Errorf("read image %s: %w", desc.Digest, err)
	}
	if w.Platform != nil && !w.Platform.Match(img.platform) {
		return desc, errSkip
	}
	layers, err := w.build(ctx, img)
	if err != nil {
		return desc, err
	}
	diffIDs := make([]digest.Digest, len(layers))
	mediaType := ocispec.MediaTypeImageLayer
	if desc.MediaType == images.MediaTypeDockerSchema2Manifest {
		mediaType = images.MediaTypeDockerSchema2Layer
	}
	for i, l := range layers {
		// A layer's blob is not compressed as far as image tools can see, so
		// it is its own diff.
		diffIDs[i] = l.Digest
		layers[i] = w.annotate(l, mediaType)
	}
	return w.rewrite(ctx, img, layers, diffIDs)
}

// An image is a manifest with its config.
type image struct {
	desc     ocispec.Descriptor
	text     []byte
	config   ocispec.Descriptor
	confText []byte
	platform ocispec.Platform
	layers   []Layer
}

func (w *walk) open(ctx context.Context, desc ocispec.Descriptor) (img image, err error) {
	img.desc = desc
	if img.text, err = w.read(ctx, desc); err != nil {
		return img, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(img.text, &m); err != nil {
		return img, err
	}
	img.config = m.Config
	if img.confText, err = w.read(ctx, m.Config); err != nil {
		return img, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	var config struct {
		ocispec.Platform
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(img.confText, &config); err != nil {
		return img, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	img.platform = config.Platform
	img.layers, err = layersOf(m, config.RootFS.DiffIDs, config.Platform)
	return img, err
}

// layersOf pairs the layers of a manifest with the diff IDs of its config.
func layersOf(m ocispec.Manifest, diffIDs []digest.Digest, p ocispec.Platform) ([]Layer, error) {
	switch n := len(m.Layers); {
	case n == 0:
		return nil, fmt.Errorf("it has no layers")
	case n != len(diffIDs):
		return nil, fmt.Errorf("%d layers, but %d diff IDs in config %s", n, len(diffIDs), m.Config.Digest)
	case n > spec.MaxLowers:
		return nil, fmt.Errorf("%d layers, at most %d can be stacked", n, spec.MaxLowers)
	}
	layers := make([]Layer, len(diffIDs))
	for i, d := range m.Layers {
		if err := diffIDs[i].Validate(); err != nil {
			return nil, fmt.Errorf("diff ID of layer %d: %w", i, err)
		}
		if !images.IsLayerType(d.MediaType) {
			return nil, fmt.Errorf("layer %d has media type %q", i, d.MediaType)
		}
		if _, ok := d.Annotations[AnnotationDigest]; ok {
			return nil, fmt.Errorf("layer %d is a block layer already", i)
		}
		layers[i] = Layer{Source: d, DiffID: diffIDs[i], Index: i, Count: len(diffIDs), Platform: p}
		layers[i].ChainID = identity.ChainID(diffIDs[:i+1])
		if i > 0 {
			layers[i].Parent = layers[i-1].ChainID
		}
	}
	return layers, nil
}

// build applies the layers in order, packing each while the next is applied.
// Of several errors it returns the first: the others follow from it.
func (w *walk) build(ctx context.Context, img image) ([]ocispec.Descriptor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	packing, ctx := errgroup.WithContext(ctx)
	packing.SetLimit(maxPacking)
	blobs := make([]ocispec.Descriptor, len(img.layers))
	b := w.New(img.platform)
	var failed bool
	for i, l := range img.layers {
		pack, err := b.Apply(ctx, l)
		if failed = err != nil; failed {
			cancel(fmt.Errorf("apply layer %s: %w", l.Source.Digest, err))
			break
		}
		packing.Go(func() (err error) {
			if blobs[i], err = pack(ctx); err != nil {
				return fmt.Errorf("pack layer %s: %w", l.Source.Digest, err)
			}
			return nil
		})
	}
	if err := packing.Wait(); err != nil || failed {
		return nil, context.Cause(ctx)
	}
	return blobs, nil
}

// annotate completes the descriptor of a packed layer.
func (w *walk) annotate(l ocispec.Descriptor, mediaType string) ocispec.Descriptor {
	l.MediaType = mediaType
	extra := l.Annotations
	l.Annotations = map[string]string{
		AnnotationVersion: formatVersion,
		AnnotationDigest:  l.Digest.String(),
		AnnotationSize:    strconv.FormatInt(l.Size, 10),
	}
	if w.FSType != "" {
		l.Annotations[AnnotationFSType] = w.FSType
	}
	maps.Copy(l.Annotations, extra)
	return l
}

// rewrite stores the config and the manifest that name the new layers.
func (w *walk) rewrite(ctx context.Context, img image, layers []ocispec.Descriptor, diffIDs []digest.Digest) (ocispec.Descriptor, error) {
	text, err := set(img.confText, diffIDs, "rootfs", "diff_ids")
	if err != nil {
		return img.desc, fmt.Errorf("edit config %s: %w", img.config.Digest, err)
	}
	config, err := w.write(ctx, img.config, text, nil)
	if err != nil {
		return img.desc, err
	}
	if text, err = set(img.text, config, "config"); err != nil {
		return img.desc, fmt.Errorf("edit manifest %s: %w", img.desc.Digest, err)
	}
	if text, err = set(text, layers, "layers"); err != nil {
		return img.desc, fmt.Errorf("edit manifest %s: %w", img.desc.Digest, err)
	}
	labels := childLabels("l", layers)
	labels["containerd.io/gc.ref.content.config"] = config.Digest.String()
	return w.write(ctx, img.desc, text, labels)
}
