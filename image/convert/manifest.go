// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strconv"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
func (w *walk) manifest(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	img, err := w.open(ctx, desc)
	if err != nil {
		return desc, fmt.Errorf("read image %s: %w", desc.Digest, err)
	}
	if w.Platform != nil && !w.Platform.Match(img.Platform) {
		return desc, w.refuse(img.Platform)
	}
	if w.Memory == nil {
		return w.rebuild(ctx, img)
	}
	if was, ok, err := w.Memory.Recall(ctx, desc); ok || err != nil {
		was.ArtifactType = w.ArtifactType
		return was, err
	}
	converted, err := w.rebuild(ctx, img)
	if err == nil {
		err = w.Memory.Remember(ctx, desc, converted)
	}
	return converted, err
}

// rebuild has the layers rebuilt, and writes the documents that name them.
func (w *walk) rebuild(ctx context.Context, img document) (ocispec.Descriptor, error) {
	layers, err := w.Builder.Build(ctx, img.Image)
	if err != nil {
		return img.Source, err
	}
	diffIDs := make([]digest.Digest, len(layers))
	for i, l := range layers {
		// A layer's blob is not compressed as far as image tools can see, so
		// it is its own diff.
		diffIDs[i] = l.Digest
		layers[i] = w.annotate(l, img.Source.MediaType)
	}
	return w.rewrite(ctx, img, layers, diffIDs)
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

// annotate completes the descriptor of a packed layer.
func (w *walk) annotate(l ocispec.Descriptor, manifestType string) ocispec.Descriptor {
	l.MediaType = ocispec.MediaTypeImageLayer
	if manifestType == images.MediaTypeDockerSchema2Manifest && !w.oci() {
		l.MediaType = images.MediaTypeDockerSchema2Layer
	}
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
func (w *walk) rewrite(ctx context.Context, img document, layers []ocispec.Descriptor, diffIDs []digest.Digest) (ocispec.Descriptor, error) {
	conf := editor{text: img.confText}
	conf.set(diffIDs, "rootfs", "diff_ids")
	if len(layers) < len(img.Layers) {
		conf.flattenHistory()
	}
	if conf.err != nil {
		return img.Source, fmt.Errorf("edit config %s: %w", img.config.Digest, conf.err)
	}
	if w.oci() {
		img.config.MediaType = OCIType(img.config.MediaType)
	}
	config, err := w.write(ctx, img.config, conf.text, nil)
	if err != nil {
		return img.Source, err
	}
	e := editor{text: img.text}
	e.set(config, "config")
	e.set(layers, "layers")
	return w.finish(ctx, img.Source, e, "manifest", append([]ocispec.Descriptor{config}, layers...))
}

// oci reports whether every media type is to be OCI's. Docker's manifests have
// no room for what a referrer says.
func (c *Converter) oci() bool { return c.OCI || c.ArtifactType != "" }

// OCIType returns OCI's type of the documents that Docker calls mediaType, and
// any other as it is.
func OCIType(mediaType string) string {
	switch mediaType {
	case images.MediaTypeDockerSchema2ManifestList:
		return ocispec.MediaTypeImageIndex
	case images.MediaTypeDockerSchema2Manifest:
		return ocispec.MediaTypeImageManifest
	case images.MediaTypeDockerSchema2Config:
		return ocispec.MediaTypeImageConfig
	}
	return mediaType
}
