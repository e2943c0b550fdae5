// SPDX-License-Identifier: Apache-2.0

// Package convert turns OCI and Docker images into block images: it walks
// index, manifests and configs, has every layer rebuilt by a [Builder], and
// writes the documents that name the new layers.
//
// The one thing to know: documents are edited, not re-encoded. What changes is
// the list of layers, the diff IDs and the digests that follow from them; every
// other byte of a config, known to OCI or not, stays as it was.
package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds what is read of an index, manifest or config, in bytes;
// registries take no more than 4 MiB.
const maxDocument = 8 << 20

// maxDepth bounds indexes within indexes.
const maxDepth = 8

// A Store holds the documents of an image and takes those of its conversion.
type Store interface {
	content.Provider
	content.Ingester
}

// A Builder rebuilds the layers of one image, bottom first.
type Builder interface {
	// Apply puts l on top of the layers applied before. The Pack it returns
	// may run while later layers are applied.
	Apply(ctx context.Context, l Layer) (Pack, error)
}

// A Pack stores the blob of an applied layer. The descriptor it returns holds
// the blob's digest and size, and annotations if there are more than those
// every block layer has.
type Pack func(ctx context.Context) (ocispec.Descriptor, error)

// A Converter converts images of one store.
type Converter struct {
	Store Store

	// New returns the builder for an image of platform p. It is called once
	// per manifest, one after the other.
	New func(p ocispec.Platform) Builder

	// Platform selects manifests of an index. If it is nil, those are
	// converted whose content the store has; there must be one.
	Platform platforms.Matcher

	// FSType is what the layers are annotated with, if anything.
	FSType string
}

// errSkip says that an entry of an index has no place in the new one.
var errSkip = errors.New("not selected")

// Convert converts the index or manifest and returns what became of it.
func (c *Converter) Convert(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	w := walk{Converter: c, done: make(map[digest.Digest]ocispec.Descriptor)}
	desc, err := w.convert(ctx, desc, 0)
	if errors.Is(err, errSkip) {
		return desc, fmt.Errorf("%w: no manifest of the image is selected and has its content here", errdefs.ErrNotFound)
	}
	return desc, err
}

// A walk is one conversion.
type walk struct {
	*Converter
	done map[digest.Digest]ocispec.Descriptor // by source
}

func (w *walk) convert(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	old, ok := w.done[desc.Digest]
	if !ok {
		var err error
		if old, err = w.document(ctx, desc, depth); err != nil {
			return desc, err
		}
		w.done[desc.Digest] = old
	}
	return renamed(desc, old.Digest, old.Size), nil
}

func (w *walk) document(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	convert := w.manifest
	switch {
	case images.IsManifestType(desc.MediaType):
	case images.IsIndexType(desc.MediaType) && depth < maxDepth:
		convert = func(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
			return w.index(ctx, desc, depth)
		}
	case images.IsIndexType(desc.MediaType):
		return desc, fmt.Errorf("index %s: nested more than %d deep", desc.Digest, maxDepth)
	default:
		return desc, fmt.Errorf("%s: cannot convert media type %q", desc.Digest, desc.MediaType)
	}
	return convert(ctx, desc)
}

// renamed returns desc for other content of the same meaning.
func renamed(desc ocispec.Descriptor, d digest.Digest, size int64) ocispec.Descriptor {
	desc.Digest, desc.Size = d, size
	desc.URLs, desc.Data = nil, nil
	return desc
}

func (w *walk) index(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	text, err := w.read(ctx, desc)
	if err != nil {
		return desc, fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return desc, fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	// One at a time: the layers of one image keep every CPU busy.
	var entries []ocispec.Descriptor
	for _, m := range index.Manifests {
		entry, err := w.entry(ctx, m, depth)
		if errors.Is(err, errSkip) {
			continue
		}
		if err != nil {
			return desc, err
		}
		entries = append(entries, entry)
	}
	if len(entries) == 0 {
		return desc, errSkip
	}
	if text, err = set(text, entries, "manifests"); err != nil {
		return desc, fmt.Errorf("edit index %s: %w", desc.Digest, err)
	}
	return w.write(ctx, desc, text, childLabels("m", entries))
}

// entry converts one entry of an index, or says errSkip.
func (w *walk) entry(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	if _, ok := desc.Annotations["vnd.docker.reference.type"]; ok {
		return desc, errSkip // an attestation of a manifest that will be another
	}
	if w.Platform != nil && desc.Platform != nil && !w.Platform.Match(*desc.Platform) {
		return desc, errSkip
	}
	if w.Platform == nil && !w.present(ctx, desc) {
		return desc, errSkip
	}
	return w.convert(ctx, desc, depth+1)
}

// present reports whether the store has a manifest with all it names. It says
// yes of whatever it cannot read for another reason, which conversion will
// then report.
func (w *walk) present(ctx context.Context, desc ocispec.Descriptor) bool {
	text, err := w.read(ctx, desc)
	if err != nil {
		return !errdefs.IsNotFound(err)
	}
	var m ocispec.Manifest
	if !images.IsManifestType(desc.MediaType) || json.Unmarshal(text, &m) != nil {
		return true
	}
	for _, d := range append(m.Layers, m.Config) {
		ra, err := w.Store.ReaderAt(ctx, d)
		if errdefs.IsNotFound(err) {
			return false
		}
		if err == nil {
			ra.Close()
		}
	}
	return true
}

// read returns the document desc, which is what its digest says.
func (w *walk) read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, err
	}
	r, err := content.BlobReadSeeker(ctx, w.Store, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxDocument {
		return nil, fmt.Errorf("larger than %d bytes", maxDocument)
	}
	if got := desc.Digest.Algorithm().FromBytes(text); got != desc.Digest {
		return nil, fmt.Errorf("content has digest %s", got)
	}
	return text, nil
}

// write stores text, the successor of desc.
func (w *walk) write(ctx context.Context, desc ocispec.Descriptor, text []byte, labels map[string]string) (ocispec.Descriptor, error) {
	desc = renamed(desc, digest.FromBytes(text), int64(len(text)))
	err := content.WriteBlob(ctx, w.Store, "convert-"+desc.Digest.String(), bytes.NewReader(text), desc, content.WithLabels(labels))
	if err != nil {
		return desc, fmt.Errorf("write %s: %w", desc.MediaType, err)
	}
	return desc, nil
}

// childLabels tell containerd's garbage collector what a document refers to.
func childLabels(kind string, children []ocispec.Descriptor) map[string]string {
	labels := make(map[string]string, len(children)+1)
	for i, d := range children {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%s.%d", kind, i)] = d.Digest.String()
	}
	return labels
}
