// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/convert"
)

// A track is the building of one output of an image.
type track struct {
	*job
	Output
	id    int // of the output
	maker maker
	chain *build.Chain
	open  []io.Closer // what the layers on the chain are read from

	missed   bool                   // the cache lacked a layer, so it lacks those above
	provided map[digest.Digest]bool // layers of the source that the target has
}

// A maker makes the layers of one format.
type maker interface {
	// options returns what chain the layers are built on.
	options(o build.Options) build.Options

	// build makes the blob of a layer, of the source's content of it.
	build(ctx context.Context, t *track, l convert.Layer, content io.Reader) (*convert.Blob, error)

	// push puts a layer that was built on the chain.
	push(ctx context.Context, t *track, b *convert.Blob) error

	// found puts a layer on the chain whose blob the target has. It takes the
	// blob, unless it fails.
	found(ctx context.Context, t *track, l convert.Layer, desc ocispec.Descriptor, blob fetcher.Blob) (convert.Packed, error)

	// packed describes a layer that was built.
	packed(l convert.Layer, b *convert.Blob) convert.Packed
}

// makers are those of the formats.
func makerOf(f convert.Format) maker {
	if f == convert.Turbo {
		return turbo{}
	}
	return native{}
}

func (j *job) newTrack(id int) *track {
	o := j.outputs[id]
	t := &track{job: j, Output: o, id: id, maker: makerOf(o.Format), missed: o.Cache == nil, provided: map[digest.Digest]bool{}}
	t.chain = build.New(t.maker.options(build.Options{Dir: j.opts.Dir, VirtualSize: j.opts.VirtualSize, FSType: o.FSType}))
	return t
}

func (t *track) close() error {
	errs := []error{t.chain.Close()}
	for _, c := range t.open {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (t *track) report(e Event) {
	e.Output = t.id
	t.job.report(e)
}

// base puts the base layer at the bottom, and in the target unless it is
// merged with others.
func (t *track) base(ctx context.Context) ([]convert.Packed, error) {
	layer, err := file.Open(t.opts.BaseLayer)
	if err != nil {
		return nil, err
	}
	if err := t.chain.Push(ctx, layer, t.opts.BaseLayer); err != nil {
		return nil, errors.Join(err, layer.Close())
	}
	if t.opts.Flatten {
		return nil, nil
	}
	b, err := convert.WrapFile(t.opts.BaseLayer, t.opts.Dir)
	if err != nil {
		return nil, err
	}
	defer b.Close() //nolint:errcheck // it is only read
	return []convert.Packed{{Descriptor: b.Descriptor()}}, t.Target.PushBlob(ctx, b.Descriptor(), b)
}

// A step is what a track does with a layer.
type step struct {
	*track
	layer    convert.Layer
	packed   convert.Packed // if it was made before
	blob     *convert.Blob  // if it is built, then
	original *original      // nil if the target has the source's layer, or needs none
}

// begin looks for the layer in the cache, and for its source in the target.
func (t *track) begin(ctx context.Context, l convert.Layer) (*step, error) {
	s := &step{track: t, layer: l}
	if !t.missed {
		if err := s.find(ctx); err != nil {
			return nil, err
		}
	}
	return s, s.provide(ctx)
}

// find takes a layer from the cache.
func (s *step) find(ctx context.Context) error {
	desc, blob, err := s.Cache.Find(ctx, s.layer)
	if err != nil {
		return err
	}
	if blob == nil {
		s.missed = true
		return nil
	}
	if s.packed, err = s.maker.found(ctx, s.track, s.layer, desc, blob); err != nil {
		return errors.Join(err, blob.Close())
	}
	s.report(Event{Layer: s.layer, Stage: Reused, Done: desc.Size, Total: desc.Size, Blob: desc})
	return nil
}

// readers returns what the source's blob is needed for.
func (s *step) readers() (all []reader) {
	if s.missed {
		all = append(all, s.build)
	}
	if s.original != nil {
		all = append(all, s.original.keep)
	}
	return all
}

// build makes the blob of the layer and puts it on top.
func (s *step) build(ctx context.Context, content io.Reader) (err error) {
	if s.blob, err = s.maker.build(ctx, s.track, s.layer, content); err != nil {
		return err
	}
	s.open = append(s.open, s.blob)
	return s.maker.push(ctx, s.track, s.blob)
}

// pack stores what the target lacks, and lets the cache know.
func (s *step) pack(ctx context.Context) (convert.Packed, error) {
	if s.original != nil {
		if err := s.original.store(ctx); err != nil {
			return s.packed, fmt.Errorf("copy it: %w", err)
		}
	}
	if s.blob == nil {
		return s.packed, nil
	}
	packed := s.maker.packed(s.layer, s.blob)
	err := s.upload(ctx, s.layer, s.blob)
	if err == nil && s.Cache != nil {
		err = s.Cache.Add(ctx, s.layer, packed.Descriptor)
	}
	return packed, err
}

// upload stores the blob of a layer.
func (t *track) upload(ctx context.Context, l convert.Layer, b *convert.Blob) error {
	desc := b.Descriptor()
	content := &counted{b, func(done int64) {
		t.report(Event{Layer: l, Stage: Uploading, Done: done, Total: desc.Size})
	}}
	if err := t.Target.PushBlob(ctx, desc, content); err != nil {
		return err
	}
	t.report(Event{Layer: l, Stage: Finished, Done: desc.Size, Total: desc.Size, Blob: desc})
	return nil
}

// counted tells how far reads have got.
type counted struct {
	io.ReaderAt
	progress func(done int64)
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.progress(off + int64(n))
	return n, err
}
