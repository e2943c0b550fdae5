// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"maps"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of a block layer's descriptor, which containerd hands to the
// snapshotter as labels. Durable.
const (
	AnnotationDigest  = "containerd.io/snapshot/overlaybd/blob-digest"
	AnnotationSize    = "containerd.io/snapshot/overlaybd/blob-size" // decimal bytes
	AnnotationFSType  = "containerd.io/snapshot/overlaybd/blob-fs-type"
	AnnotationVersion = "containerd.io/snapshot/overlaybd/version"

	// Of turbo layers: the layer that holds the files' content.
	AnnotationTarget     = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest"
	AnnotationTargetType = "containerd.io/snapshot/overlaybd/turbo-oci/target-media-type"
)

// A Format is a kind of block image.
type Format int

const (
	// Native images have all their blocks in layers of their own.
	Native Format = iota

	// Turbo images add to each layer of the source a small one, of the file
	// system's metadata. The files' content is read from the source's layer.
	Turbo
)

// formats say what the documents of an image say by its format. All of it is
// durable.
var formats = [...]struct {
	name         string
	artifactType string
	version      string
	oci, docker  string // media types of layers
	mapped       bool   // layers name the source's
}{
	Native: {
		name:         "native",
		artifactType: "application/vnd.containerd.overlaybd.native.v1+json",
		version:      "0.1.0",
		// Not compressed as far as image tools can see.
		oci: ocispec.MediaTypeImageLayer, docker: images.MediaTypeDockerSchema2Layer,
	},
	Turbo: {
		name:         "turbo",
		artifactType: "application/vnd.containerd.overlaybd.turbo.v1+json",
		version:      "0.1.0-turbo.ociv1",
		oci:          ocispec.MediaTypeImageLayerGzip, docker: images.MediaTypeDockerSchema2LayerGzip,
		mapped: true,
	},
}

// String returns the format's name in a word.
func (f Format) String() string { return formats[f].name }

// ArtifactType returns the type of images that refer to their source.
func (f Format) ArtifactType() string { return formats[f].artifactType }

// A Packed layer is a blob that takes the place of a layer.
type Packed struct {
	// Descriptor has digest and size, and no annotations but those that go
	// beyond what every layer of the format has.
	Descriptor ocispec.Descriptor

	// DiffID is the digest of the tar that the blob is to image tools. A blob
	// that is no compressed tar is its own diff, and may leave it empty.
	DiffID digest.Digest

	// Format is that of the layer: a native one may lie at the bottom of a
	// turbo image.
	Format Format

	// Target is the layer that a turbo layer maps into: its digest, and the
	// media type that its content has.
	Target ocispec.Descriptor
}

func (p *Packed) diffID() digest.Digest {
	if p.DiffID == "" {
		return p.Descriptor.Digest
	}
	return p.DiffID
}

// describe returns the layer's descriptor for a manifest of Docker's, or else
// of OCI's.
func (p *Packed) describe(docker bool, fsType string) ocispec.Descriptor {
	f, d := &formats[p.Format], p.Descriptor
	d.MediaType = f.oci
	if docker {
		d.MediaType = f.docker
	}
	extra := d.Annotations
	d.Annotations = map[string]string{
		AnnotationVersion: f.version,
		AnnotationDigest:  d.Digest.String(),
		AnnotationSize:    strconv.FormatInt(d.Size, 10),
	}
	if f.mapped {
		d.Annotations[AnnotationTarget] = p.Target.Digest.String()
		d.Annotations[AnnotationTargetType] = p.Target.MediaType
	} else if fsType != "" {
		d.Annotations[AnnotationFSType] = fsType
	}
	maps.Copy(d.Annotations, extra)
	return d
}

// TargetOf returns the layer l as the target of a turbo layer. Its media type
// says what the content is compressed with, "gzip", "zstd" or nothing, whatever
// the source says of it.
func TargetOf(l Layer, compression string) ocispec.Descriptor {
	base, sep := ocispec.MediaTypeImageLayer, "+"
	if strings.HasPrefix(l.Source.MediaType, "application/vnd.docker.") {
		base, sep = images.MediaTypeDockerSchema2Layer, "."
	}
	if compression != "" {
		base += sep + compression
	}
	return ocispec.Descriptor{MediaType: base, Digest: l.Source.Digest, Size: l.Source.Size}
}
