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

// A Source holds the documents of an image.
type Source interface {
	// Open returns the content of desc, which the converter verifies. What
	// the source does not have is an errdefs.ErrNotFound.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// A PartialSource is a Source that may lack manifests which an index of its
// own lists, or their layers. Where no platform is chosen, those that are
// there are converted.
type PartialSource interface {
	Has(ctx context.Context, desc ocispec.Descriptor) (bool, error)
}

// A Builder rebuilds the layers of images.
type Builder interface {
	// Build stores the blobs that take the place of the image's layers and
	// returns them, bottom first, for each of the outputs, which are indexes
	// of the converter's. Build is called by several goroutines.
	Build(ctx context.Context, img Image, outputs []int) ([][]Packed, error)
}

// A Converter converts images of one source.
type Converter struct {
	Source  Source
	Builder Builder

	// Outputs are what each image is converted into, in one go.
	Outputs []Output

	// Platform selects manifests of an index, all if nil.
	Platform platforms.Matcher

	// Parallel is how many manifests are converted at a time: one if zero,
	// any number if negative.
	Parallel int

	// Skipped, if not nil, is told of the entries of an index that have no
	// place in the new one for another reason than their platform.
	Skipped func(desc ocispec.Descriptor, reason string)
}

// errSkip says that an entry of an index has no place in the new one.
var errSkip = errors.New("not selected")

// Convert converts the index or manifest and returns what became of it, for
// each output.
func (c *Converter) Convert(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	w := walk{Converter: c, done: make(map[digest.Digest]*result)}
	w.partial, _ = c.Source.(PartialSource)
	parallel := max(c.Parallel, 1)
	if c.Parallel < 0 {
		parallel = maxManifests
	}
	w.slots = semaphore.NewWeighted(int64(parallel))
	ctx, w.cancel = context.WithCancelCause(ctx)
	defer w.cancel(nil)
	made, err := w.convert(ctx, desc, 0)
	if errors.Is(err, errSkip) {
		return nil, w.nothing()
	}
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx) // the first of several: the others follow from it
	}
	return made, err
}

// maxManifests bounds how many indexes and manifests one image may have, and
// how many of them are under way.
const maxManifests = 1024

// A walk is one conversion.
type walk struct {
	*Converter
	partial PartialSource // nil if Source has all its indexes list
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
	ready chan struct{} // closed when made and err are set
	made  []ocispec.Descriptor
	err   error
}

// convert returns what becomes of desc, which is converted once however often
// indexes list it.
func (w *walk) convert(ctx context.Context, desc ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	w.mu.Lock()
	r, known := w.done[desc.Digest]
	if !known && len(w.done) == maxManifests {
		w.mu.Unlock()
		return nil, fmt.Errorf("%s: more than %d indexes and manifests", desc.Digest, maxManifests)
	}
	if !known {
		r = &result{ready: make(chan struct{})}
		w.done[desc.Digest] = r
	}
	w.mu.Unlock()
	if !known {
		r.made, r.err = w.document(ctx, desc, depth)
		if r.err != nil && !errors.Is(r.err, errSkip) {
			w.cancel(r.err)
		}
		close(r.ready)
	}
	select {
	case <-r.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if r.err != nil {
		return nil, r.err
	}
	made := make([]ocispec.Descriptor, len(r.made))
	for i, to := range r.made {
		made[i] = renamed(desc, to)
	}
	return made, nil
}

func (w *walk) document(ctx context.Context, desc ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	switch {
	case images.IsManifestType(desc.MediaType):
		if err := w.slots.Acquire(ctx, 1); err != nil {
			return nil, context.Cause(ctx)
		}
		defer w.slots.Release(1)
		return w.manifest(ctx, desc)
	case images.IsIndexType(desc.MediaType) && depth < maxDepth:
		return w.index(ctx, desc, depth)
	case images.IsIndexType(desc.MediaType):
		return nil, fmt.Errorf("index %s: nested more than %d deep", desc.Digest, maxDepth)
	}
	return nil, fmt.Errorf("%s: cannot convert media type %q", desc.Digest, desc.MediaType)
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

func (w *walk) index(ctx context.Context, desc ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	var index ocispec.Index
	text, err := w.readIndex(ctx, desc, &index)
	if err != nil {
		return nil, fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	entries, err := w.entries(ctx, index.Manifests, depth)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errSkip
	}
	made := make([]ocispec.Descriptor, len(w.Outputs))
	for i := range w.Outputs {
		list := make([]ocispec.Descriptor, len(entries))
		for n, all := range entries {
			list[n] = all[i]
		}
		e := editor{text: text}
		e.set(list, "manifests")
		if made[i], err = w.Outputs[i].finish(ctx, desc, e, "index", list); err != nil {
			return nil, err
		}
	}
	return made, nil
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
// place in the new ones, in order, each for all outputs.
func (w *walk) entries(ctx context.Context, all []ocispec.Descriptor, depth int) ([][]ocispec.Descriptor, error) {
	converted, errs := make([][]ocispec.Descriptor, len(all)), make([]error, len(all))
	var running sync.WaitGroup
	for i, m := range all {
		running.Go(func() { converted[i], errs[i] = w.entry(ctx, m, depth) })
	}
	running.Wait()
	var entries [][]ocispec.Descriptor
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
func (w *walk) entry(ctx context.Context, desc ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	if _, ok := desc.Annotations["vnd.docker.reference.type"]; ok {
		return nil, w.skip(desc, "it attests to a manifest that the new image does not have")
	}
	if w.Platform != nil && desc.Platform != nil && !w.Platform.Match(*desc.Platform) {
		return nil, w.refuse(*desc.Platform)
	}
	if w.Platform == nil && w.partial != nil && !w.present(ctx, desc) {
		return nil, w.skip(desc, "its content is not here")
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
	return ReadDocument(ctx, w.Source, desc)
}

// ReadDocument returns the index, manifest or config desc of a source. It is
// what its digest says, and not larger than a registry takes.
func ReadDocument(ctx context.Context, s Source, desc ocispec.Descriptor) ([]byte, error) {
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
