// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// flatten applies all layers and stores what they amount to.
func (j *job) flatten(ctx context.Context) (_ []ocispec.Descriptor, err error) {
	dir, err := os.MkdirTemp(j.opts.Dir, "layers-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, l := range j.img.Layers {
		if err := j.applyRaw(ctx, l, filepath.Join(dir, fmt.Sprintf("%d.lsmt", l.Index))); err != nil {
			return nil, fmt.Errorf("apply layer %s: %w", l.Source.Digest, err)
		}
	}
	desc, err := j.packAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("pack the layers of image %s: %w", j.img.Source.Digest, err)
	}
	return []ocispec.Descriptor{desc}, nil
}

// applyRaw puts a layer on top that is not compressed, since it will be read
// once more and is not stored.
func (j *job) applyRaw(ctx context.Context, l convert.Layer, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	err = j.unpack(ctx, l, func(r io.Reader) error {
		return j.chain.Build(ctx, buf, r, build.Layer{DiffID: l.DiffID})
	})
	if err != nil {
		return err
	}
	if err := errors.Join(buf.Flush(), f.Close()); err != nil {
		return err
	}
	blob, err := file.Open(name)
	if err != nil {
		return err
	}
	if err := j.chain.Push(ctx, blob, name); err != nil {
		return errors.Join(err, blob.Close())
	}
	return nil
}

// packAll stores all layers as one, which goes by the name of the topmost.
func (j *job) packAll(ctx context.Context) (desc ocispec.Descriptor, err error) {
	top := j.img.Layers[len(j.img.Layers)-1]
	top.Parent = ""
	j.report(Event{Layer: top, Stage: Packing})
	b, err := convert.NewBlob(func(w io.Writer, names lsmt.CommitOptions) error {
		return j.chain.Commit(ctx, w, names)
	}, j.blobOptions(top))
	if err != nil {
		return desc, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return j.upload(ctx, top, b)
}
