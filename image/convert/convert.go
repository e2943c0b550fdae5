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
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// maxDocument bounds what is read of an index, manifest or config, in bytes;
// registries take no more than 4 MiB.
const maxDocument = 8 << 20

// maxDepth bounds indexes within indexes.
const maxDepth = 8

// A Store holds the documents of an image and takes those of its conversion.
type Store interface {
	// Open returns the content of desc, which the converter verifies. What
	// the store does not have is an errdefs.ErrNotFound.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

	// Push stores the document desc. What it refers to has been stored before.
	Push(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) error
}

// A PartialStore is a Store that may lack manifests which an index of its
// own lists, or their layers. Where no platform is chosen, those that are
// there are converted.
type PartialStore interface {
	Has(ctx context.Context, desc ocispec.Descriptor) (bool, error)
}

// A Builder rebuilds the layers of images.
type Builder interface {
	// Build stores the blobs that take the place of the image's layers and
	// returns them, bottom first. They need no media type, and no annotations
	// but those that go beyond what every block layer has. Build is called by
	// several goroutines.
	Build(ctx context.Context, img Image) ([]ocispec.Descriptor, error)
}

// A Memory knows manifests that were converted before.
type Memory interface {
	// Recall returns what the manifest has become, if that is still there
	// with all it refers to, else false.
	Recall(ctx context.Context, source ocispec.Descriptor) (ocispec.Descriptor, bool, error)

	// Remember notes what the manifest has become.
	Remember(ctx context.Context, source, converted ocispec.Descriptor) error
}

// A Converter converts images of one store.
type Converter struct {
	Store   Store
	Builder Builder

	// Platform selects manifests of an index, all if nil.
	Platform platforms.Matcher

	// FSType is what the layers are annotated with, if anything.
	FSType string

	// OCI makes every media type one of OCI's. Otherwise each is the source's.
	OCI bool

	// ArtifactType, if not empty, makes every new index and manifest a
	// referrer of that type, whose subject is its source. It implies OCI.
	ArtifactType string

	// Parallel is how many manifests are converted at a time: one if zero,
	// any number if negative.
	Parallel int

	// Memory is asked before a manifest is converted, unless it is nil.
	Memory Memory

	// Skipped, if not nil, is told of the entries of an index that have no
	// place in the new one for another reason than their platform.
	Skipped func(desc ocispec.Descriptor, reason string)
}

// ArtifactTypeNative is the type of block images that refer to their source.
// Durable.
const ArtifactTypeNative = "application/vnd.containerd.overlaybd.native.v1+json"

// errSkip says that an entry of an index has no place in the new one.
var errSkip = errors.New("not selected")

// Convert converts the index or manifest and returns what became of it.
func (c *Converter) Convert(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	w := walk{Converter: c, done: make(map[digest.Digest]*result)}
	w.partial, _ = c.Store.(PartialStore)
	parallel := max(c.Parallel, 1)
	if c.Parallel < 0 {
		parallel = maxManifests
	}
	w.slots = semaphore.NewWeighted(int64(parallel))
	ctx, w.cancel = context.WithCancelCause(ctx)
	defer w.cancel(nil)
	desc, err := w.convert(ctx, desc, 0)
	if errors.Is(err, errSkip) {
		return desc, w.nothing()
	}
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx) // the first of several: the others follow from it
	}
	return desc, err
}

// maxManifests bounds how many indexes and manifests one image may have, and
// how many of them are under way.
const maxManifests = 1024

// A walk is one conversion.
type walk struct {
	*Converter
	partial PartialStore // nil if Store has all its indexes list
	slots   *semaphore.Weighted
	cancel  context.CancelCauseFunc

	mu     sync.Mutex                // guards what follows
	done   map[digest.Digest]*result // by source
	others []string                  // platforms that are not selected
}

// refuse notes a platform that is not selected.
func (w *walk) refuse(p ocispec.Platform) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.others = append(w.others, platforms.FormatAll(p))
	return errSkip
}

// nothing returns the error of an image of which nothing is converted.
func (w *walk) nothing() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.others) == 0 {
		return fmt.Errorf("%w: no manifest of the image has its content here", errdefs.ErrNotFound)
	}
	slices.Sort(w.others)
	return fmt.Errorf("%w: no manifest of the image is selected and has its content here; there are others, for %s",
		errdefs.ErrNotFound, strings.Join(slices.Compact(w.others), ", "))
}

// A result is what becomes of a document.
type result struct {
	ready chan struct{} // closed when desc and err are set
	desc  ocispec.Descriptor
	err   error
}

// convert returns what becomes of desc, which is converted once however often
// indexes list it.
func (w *walk) convert(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	w.mu.Lock()
	r, known := w.done[desc.Digest]
	if !known && len(w.done) == maxManifests {
		w.mu.Unlock()
		return desc, fmt.Errorf("%s: more than %d indexes and manifests", desc.Digest, maxManifests)
	}
	if !known {
		r = &result{ready: make(chan struct{})}
		w.done[desc.Digest] = r
	}
	w.mu.Unlock()
	if !known {
		r.desc, r.err = w.document(ctx, desc, depth)
		if r.err != nil && !errors.Is(r.err, errSkip) {
			w.cancel(r.err)
		}
		close(r.ready)
	}
	select {
	case <-r.ready:
	case <-ctx.Done():
		return desc, context.Cause(ctx)
	}
	return renamed(desc, r.desc), r.err
}

func (w *walk) document(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	switch {
	case images.IsManifestType(desc.MediaType):
		if err := w.slots.Acquire(ctx, 1); err != nil {
			return desc, context.Cause(ctx)
		}
		defer w.slots.Release(1)
		return w.manifest(ctx, desc)
	case images.IsIndexType(desc.MediaType) && depth < maxDepth:
		return w.index(ctx, desc, depth)
	case images.IsIndexType(desc.MediaType):
		return desc, fmt.Errorf("index %s: nested more than %d deep", desc.Digest, maxDepth)
	}
	return desc, fmt.Errorf("%s: cannot convert media type %q", desc.Digest, desc.MediaType)
}

// renamed returns desc for other content of the same meaning.
func renamed(desc, to ocispec.Descriptor) ocispec.Descriptor {
	desc.MediaType, desc.Digest, desc.Size = to.MediaType, to.Digest, to.Size
	desc.URLs, desc.Data = nil, nil
	if to.ArtifactType != "" {
		desc.ArtifactType = to.ArtifactType
	}
	return desc
}

func (w *walk) index(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	var index ocispec.Index
	text, err := w.readIndex(ctx, desc, &index)
	if err != nil {
		return desc, fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	entries, err := w.entries(ctx, index.Manifests, depth)
	if err != nil {
		return desc, err
	}
	if len(entries) == 0 {
		return desc, errSkip
	}
	e := editor{text: text}
	e.set(entries, "manifests")
	return w.finish(ctx, desc, e, "index", entries)
}

// readIndex reads an index in turn with the conversions, since memory is as
// short while it does.
func (w *walk) readIndex(ctx context.Context, desc ocispec.Descriptor, index *ocispec.Index) ([]byte, error) {
	if err := w.slots.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer w.slots.Release(1)
	text, err := w.read(ctx, desc)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, index); err != nil {
		return nil, err
	}
	if n := len(index.Manifests); n > maxManifests {
		return nil, fmt.Errorf("it lists %d manifests, at most %d are converted", n, maxManifests)
	}
	return text, nil
}

// entries converts the entries of an index and returns those that have a
// place in the new one, in order.
func (w *walk) entries(ctx context.Context, all []ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	converted, errs := make([]ocispec.Descriptor, len(all)), make([]error, len(all))
	var running sync.WaitGroup
	for i, m := range all {
		running.Go(func() { converted[i], errs[i] = w.entry(ctx, m, depth) })
	}
	running.Wait()
	var entries []ocispec.Descriptor
	for i, err := range errs {
		switch {
		case err == nil:
			entries = append(entries, converted[i])
		case !errors.Is(err, errSkip):
			return nil, err
		}
	}
	return entries, nil
}

// entry converts one entry of an index, or says errSkip.
func (w *walk) entry(ctx context.Context, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	if _, ok := desc.Annotations["vnd.docker.reference.type"]; ok {
		return desc, w.skip(desc, "it attests to a manifest that the new image does not have")
	}
	if w.Platform != nil && desc.Platform != nil && !w.Platform.Match(*desc.Platform) {
		return desc, w.refuse(*desc.Platform)
	}
	if w.Platform == nil && w.partial != nil && !w.present(ctx, desc) {
		return desc, w.skip(desc, "its content is not here")
	}
	return w.convert(ctx, desc, depth+1)
}

func (w *walk) skip(desc ocispec.Descriptor, reason string) error {
	if w.Skipped != nil {
		w.Skipped(desc, reason)
	}
	return errSkip
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
		if ok, err := w.partial.Has(ctx, d); err == nil && !ok {
			return false
		}
	}
	return true
}

// read returns the document desc, which is what its digest says.
func (w *walk) read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return ReadDocument(ctx, w.Store, desc)
}

// ReadDocument returns the index, manifest or config desc of a store. It is
// what its digest says, and not larger than a registry takes.
func ReadDocument(ctx context.Context, s interface {
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}, desc ocispec.Descriptor,
) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, err
	}
	r, err := s.Open(ctx, desc)
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

// finish stores the edited index or manifest, the successor of desc.
func (w *walk) finish(ctx context.Context, desc ocispec.Descriptor, e editor, noun string, children []ocispec.Descriptor) (ocispec.Descriptor, error) {
	source := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	if w.oci() {
		desc.MediaType = OCIType(desc.MediaType)
		e.put(desc.MediaType, "mediaType")
	}
	if w.ArtifactType != "" {
		e.put(w.ArtifactType, "artifactType")
		e.put(source, "subject")
		desc.ArtifactType = w.ArtifactType
	}
	if e.err != nil {
		return desc, fmt.Errorf("edit %s %s: %w", noun, source.Digest, e.err)
	}
	return w.write(ctx, desc, e.text, children)
}

// write stores text, the successor of desc.
func (w *walk) write(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) (ocispec.Descriptor, error) {
	to := ocispec.Descriptor{MediaType: desc.MediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	if len(text) > maxDocument {
		return desc, fmt.Errorf("write %s: it would be larger than %d bytes", desc.MediaType, maxDocument)
	}
	desc = renamed(desc, to)
	if err := w.Store.Push(ctx, desc, text, children); err != nil {
		return desc, fmt.Errorf("write %s %s: %w", desc.MediaType, desc.Digest, err)
	}
	return desc, nil
}
