// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// A job is the building of one image.
type job struct {
	*Pipeline
	img    convert.Image
	chain  *build.Chain
	next   *download       // of the layer after the one being applied; nil for none
	sealed []*build.Sealed // all layers, where they are to be merged
	missed bool            // the cache lacked a layer, so it lacks those above
}

func (j *job) close() error {
	if j.next != nil {
		j.next.close()
	}
	return j.chain.Close()
}

// apply puts a layer on top: a blob that the cache knows, or one that is
// built.
func (j *job) apply(ctx context.Context, l convert.Layer) (convert.Pack, error) {
	if j.opts.Cache != nil && !j.missed {
		desc, ok, err := j.find(ctx, l)
		if err != nil {
			return nil, err
		}
		if ok {
			j.report(Event{Layer: l, Stage: Reused, Done: desc.Size, Total: desc.Size, Blob: desc})
			return func(context.Context) (ocispec.Descriptor, error) { return desc, nil }, nil
		}
		j.missed = true
	}
	sealed, err := j.build(ctx, l)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (ocispec.Descriptor, error) { return j.pack(ctx, l, sealed) }, nil
}

// find takes a layer from the cache.
func (j *job) find(ctx context.Context, l convert.Layer) (ocispec.Descriptor, bool, error) {
	desc, blob, err := j.opts.Cache.Find(ctx, l)
	if err != nil || blob == nil {
		return desc, false, err
	}
	if err := j.chain.Push(ctx, blob, "converted layer "+desc.Digest.String()); err != nil {
		return desc, false, errors.Join(err, blob.Close())
	}
	return desc, true, nil
}

// build downloads a layer, applies it and starts on the download of the next.
func (j *job) build(ctx context.Context, l convert.Layer) (*build.Sealed, error) {
	d := j.next
	if d == nil {
		d = j.download(ctx, l)
	}
	defer d.close()
	j.next = nil
	if n := l.Index + 1; n < len(j.img.Layers) {
		j.next = j.download(ctx, j.img.Layers[n])
	}
	return j.chain.Apply(ctx, d, l.DiffID)
}

func (j *job) download(ctx context.Context, l convert.Layer) *download {
	return newDownload(ctx, j.src, l.Source, func(done int64) {
		j.report(Event{Layer: l, Stage: Applying, Done: done, Total: l.Source.Size})
	})
}

// pack stores the blob of a layer that was built.
func (j *job) pack(ctx context.Context, l convert.Layer, sealed *build.Sealed) (desc ocispec.Descriptor, err error) {
	layer, err := openSealed(ctx, sealed)
	if err != nil {
		return desc, err
	}
	defer func() { err = errors.Join(err, layer.Close()) }()
	desc, err = j.store(ctx, layer, l)
	if err == nil && j.opts.Cache != nil {
		err = j.opts.Cache.Add(ctx, l, desc)
	}
	return desc, err
}

// store compresses a layer and uploads it.
func (j *job) store(ctx context.Context, layer lsmt.Source, l convert.Layer) (desc ocispec.Descriptor, err error) {
	b, err := j.compress(ctx, layer, l)
	if err != nil {
		return desc, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	desc = b.Descriptor()
	content := &counted{b, func(done int64) {
		j.report(Event{Layer: l, Stage: Uploading, Done: done, Total: desc.Size})
	}}
	if err := j.dst.PushBlob(ctx, desc, content); err != nil {
		return desc, err
	}
	j.report(Event{Layer: l, Stage: Finished, Done: desc.Size, Total: desc.Size, Blob: desc})
	return desc, nil
}

func (j *job) compress(ctx context.Context, layer lsmt.Source, l convert.Layer) (*convert.Blob, error) {
	if err := j.packing.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer j.packing.Release(1)
	j.report(Event{Layer: l, Stage: Packing})
	b, err := convert.NewBlob(ctx, layer, convert.BlobOptions{
		ChainID: l.ChainID, Parent: l.Parent, Compression: j.opts.Compression, TempDir: j.opts.Dir,
	})
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return b, nil
}

func (p *Pipeline) report(e Event) {
	if p.opts.Report != nil {
		p.opts.Report(e)
	}
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
