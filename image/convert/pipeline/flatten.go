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
func (t *track) flatten(ctx context.Context) (_ []convert.Packed, err error) {
	dir, err := os.MkdirTemp(t.opts.Dir, "layers-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, l := range t.img.Layers {
		if err := t.applyRaw(ctx, l, filepath.Join(dir, fmt.Sprintf("%d.lsmt", l.Index))); err != nil {
			return nil, fmt.Errorf("apply layer %s: %w", l.Source.Digest, err)
		}
	}
	desc, err := t.packMerged(ctx)
	if err != nil {
		return nil, fmt.Errorf("pack the layers of image %s: %w", t.img.Source.Digest, err)
	}
	return []convert.Packed{{Descriptor: desc}}, nil
}

// applyRaw puts a layer on top that is not compressed, since it will be read
// once more and is not stored.
func (t *track) applyRaw(ctx context.Context, l convert.Layer, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	err = t.unpack(ctx, l, func(r io.Reader) error {
		return t.chain.Build(ctx, buf, r, build.Layer{DiffID: l.DiffID})
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
	if err := t.chain.Push(ctx, blob, name); err != nil {
		return errors.Join(err, blob.Close())
	}
	return nil
}

// packMerged stores all layers as one, which goes by the name of the topmost.
func (t *track) packMerged(ctx context.Context) (desc ocispec.Descriptor, err error) {
	top := t.img.Layers[len(t.img.Layers)-1]
	top.Parent = ""
	t.report(Event{Layer: top, Stage: Packing})
	b, err := convert.NewBlob(func(w io.Writer, names lsmt.CommitOptions) error {
		return t.chain.Commit(ctx, w, names)
	}, t.blobOptions(top))
	if err != nil {
		return desc, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return b.Descriptor(), t.upload(ctx, top, b)
}
