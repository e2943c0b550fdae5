// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

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

// An Image is an image whose layers are to be rebuilt.
type Image struct {
	Source   ocispec.Descriptor // its manifest
	Platform ocispec.Platform
	Layers   []Layer // bottom first
}

// manifest converts one image.
func (w *walk) manifest(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	img, err := w.open(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", desc.Digest, err)
	}
	if w.Platform != nil && !w.Platform.Match(img.Platform) {
		return nil, w.refuse(img.Platform)
	}
	made := make([]ocispec.Descriptor, len(w.Outputs))
	var missing []int
	for i := range w.Outputs {
		was, ok, err := w.Outputs[i].recall(ctx, desc)
		if err != nil {
			return nil, err
		}
		if made[i] = was; !ok {
			missing = append(missing, i)
		}
	}
	if len(missing) == 0 {
		return made, nil
	}
	layers, err := w.Builder.Build(ctx, img.Image, missing)
	if err != nil {
		return nil, err
	}
	for n, i := range missing {
		if made[i], err = w.Outputs[i].image(ctx, img, layers[n]); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// A document is the text of a manifest with its config.
type document struct {
	Image
	text     []byte
	config   ocispec.Descriptor
	confText []byte
}

func (w *walk) open(ctx context.Context, desc ocispec.Descriptor) (img document, err error) {
	img.Source = desc
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
	img.Platform = config.Platform
	img.Layers, err = layersOf(m, config.RootFS.DiffIDs, config.Platform)
	return img, err
}

// tarLayer matches the media types of layers that are tars, compressed or not.
// Others, such as encrypted ones, cannot be applied.
var tarLayer = regexp.MustCompile(`^application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar|docker\.image\.rootfs\.(foreign\.)?diff\.tar)([.+](gzip|zstd))?$`)

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
		if !tarLayer.MatchString(d.MediaType) {
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
