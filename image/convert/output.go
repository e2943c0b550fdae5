// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Target takes the documents of a converted image.
type Target interface {
	// Push stores the document desc. What it refers to has been stored before.
	Push(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) error
}

// A Memory knows manifests that were converted before.
type Memory interface {
	// Recall returns what the manifest has become, if that is still there
	// with all it refers to, else false.
	Recall(ctx context.Context, source ocispec.Descriptor) (ocispec.Descriptor, bool, error)

	// Remember notes what the manifest has become.
	Remember(ctx context.Context, source, converted ocispec.Descriptor) error
}

// An Output is one of the images that a source is converted into.
type Output struct {
	Format Format
	Target Target

	// FSType is what native layers are annotated with, if anything.
	FSType string

	// OCI makes every media type one of OCI's. Otherwise each is the source's.
	OCI bool

	// Referrer makes every new index and manifest a referrer of the format's
	// artifact type, whose subject is its source. It implies OCI.
	Referrer bool

	// Memory is asked before a manifest is converted, unless it is nil.
	Memory Memory
}

// oci reports whether every media type is to be OCI's. Docker's manifests have
// no room for what a referrer says.
func (o *Output) oci() bool { return o.OCI || o.Referrer }

// recall returns what the manifest has become, if that is known.
func (o *Output) recall(ctx context.Context, source ocispec.Descriptor) (ocispec.Descriptor, bool, error) {
	if o.Memory == nil {
		return source, false, nil
	}
	was, ok, err := o.Memory.Recall(ctx, source)
	if o.Referrer {
		was.ArtifactType = o.Format.ArtifactType()
	}
	return was, ok, err
}

// image stores the config and the manifest that name the new layers.
func (o *Output) image(ctx context.Context, img document, packed []Packed) (ocispec.Descriptor, error) {
	docker := img.Source.MediaType == images.MediaTypeDockerSchema2Manifest && !o.oci()
	layers, diffIDs := make([]ocispec.Descriptor, len(packed)), make([]digest.Digest, len(packed))
	for i, p := range packed {
		layers[i], diffIDs[i] = p.describe(docker, o.FSType), p.diffID()
	}
	desc, err := o.rewrite(ctx, img, layers, diffIDs)
	if err == nil && o.Memory != nil {
		err = o.Memory.Remember(ctx, img.Source, desc)
	}
	return desc, err
}

func (o *Output) rewrite(ctx context.Context, img document, layers []ocispec.Descriptor, diffIDs []digest.Digest) (ocispec.Descriptor, error) {
	conf := editor{text: img.confText}
	conf.set(diffIDs, "rootfs", "diff_ids")
	if len(layers) < len(img.Layers) {
		conf.flattenHistory()
	}
	if conf.err != nil {
		return img.Source, fmt.Errorf("edit config %s: %w", img.config.Digest, conf.err)
	}
	if o.oci() {
		img.config.MediaType = OCIType(img.config.MediaType)
	}
	config, err := o.write(ctx, img.config, conf.text, nil)
	if err != nil {
		return img.Source, err
	}
	e := editor{text: img.text}
	e.set(config, "config")
	e.set(layers, "layers")
	return o.finish(ctx, img.Source, e, "manifest", append([]ocispec.Descriptor{config}, layers...))
}

// finish stores the edited index or manifest, the successor of desc.
func (o *Output) finish(ctx context.Context, desc ocispec.Descriptor, e editor, noun string, children []ocispec.Descriptor) (ocispec.Descriptor, error) {
	source := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	if o.oci() {
		desc.MediaType = OCIType(desc.MediaType)
		e.put(desc.MediaType, "mediaType")
	}
	if o.Referrer {
		desc.ArtifactType = o.Format.ArtifactType()
		e.put(desc.ArtifactType, "artifactType")
		e.put(source, "subject")
	}
	if e.err != nil {
		return desc, fmt.Errorf("edit %s %s: %w", noun, source.Digest, e.err)
	}
	return o.write(ctx, desc, e.text, children)
}

// write stores text, the successor of desc.
func (o *Output) write(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) (ocispec.Descriptor, error) {
	to := ocispec.Descriptor{MediaType: desc.MediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	if len(text) > maxDocument {
		return desc, fmt.Errorf("write %s: it would be larger than %d bytes", desc.MediaType, maxDocument)
	}
	desc = renamed(desc, to)
	if err := o.Target.Push(ctx, desc, text, children); err != nil {
		return desc, fmt.Errorf("write %s %s: %w", desc.MediaType, desc.Digest, err)
	}
	return desc, nil
}

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
