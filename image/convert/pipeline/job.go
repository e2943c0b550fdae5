// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
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
	blobs  []*convert.Blob // of layers, which those above are built on
	missed bool            // the cache lacked a layer, so it lacks those above
}

func (j *job) close() error {
	if j.next != nil {
		j.next.close()
	}
	errs := []error{j.chain.Close()}
	for _, b := range j.blobs {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
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
	b, err := j.build(ctx, l)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (ocispec.Descriptor, error) { return j.store(ctx, l, b) }, nil
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

// build makes the blob of a layer and puts it on top.
func (j *job) build(ctx context.Context, l convert.Layer) (b *convert.Blob, err error) {
	err = j.unpack(ctx, l, func(r io.Reader) error {
		b, err = convert.NewBlob(func(w io.Writer, names lsmt.CommitOptions) error {
			return j.chain.Build(ctx, w, r, build.Layer{DiffID: l.DiffID, Names: names})
		}, j.blobOptions(l))
		return err
	})
	if err != nil {
		return nil, err
	}
	j.blobs = append(j.blobs, b)
	return b, j.chain.Push(ctx, b.Layer(), "converted layer "+b.Descriptor().Digest.String())
}

func (j *job) blobOptions(l convert.Layer) convert.BlobOptions {
	return convert.BlobOptions{ChainID: l.ChainID, Parent: l.Parent, Compression: j.opts.Compression, TempDir: j.opts.Dir}
}

// unpack downloads a layer for apply, and starts on the download of the next.
func (j *job) unpack(ctx context.Context, l convert.Layer, apply func(io.Reader) error) error {
	d := j.next
	if d == nil {
		d = j.download(ctx, l)
	}
	defer d.close()
	j.next = nil
	if n := l.Index + 1; n < len(j.img.Layers) {
		j.next = j.download(ctx, j.img.Layers[n])
	}
	return apply(d)
}

func (j *job) download(ctx context.Context, l convert.Layer) *download {
	return newDownload(ctx, j.src, l.Source, func(done int64) {
		j.report(Event{Layer: l, Stage: Applying, Done: done, Total: l.Source.Size})
	})
}

// store uploads the blob of a layer, and lets the cache know.
func (j *job) store(ctx context.Context, l convert.Layer, b *convert.Blob) (ocispec.Descriptor, error) {
	desc, err := j.upload(ctx, l, b)
	if err == nil && j.opts.Cache != nil {
		err = j.opts.Cache.Add(ctx, l, desc)
	}
	return desc, err
}

func (j *job) upload(ctx context.Context, l convert.Layer, b *convert.Blob) (ocispec.Descriptor, error) {
	desc := b.Descriptor()
	content := &counted{b, func(done int64) {
		j.report(Event{Layer: l, Stage: Uploading, Done: done, Total: desc.Size})
	}}
	if err := j.dst.PushBlob(ctx, desc, content); err != nil {
		return desc, err
	}
	j.report(Event{Layer: l, Stage: Finished, Done: desc.Size, Total: desc.Size, Blob: desc})
	return desc, nil
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
