// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// native makes layers with blocks of their own.
type native struct{}

func (native) options(o build.Options) build.Options { return o }

func (native) build(ctx context.Context, t *track, l convert.Layer, content io.Reader) (*convert.Blob, error) {
	return convert.NewBlob(func(w io.Writer, names lsmt.CommitOptions) error {
		return t.chain.Build(ctx, w, content, build.Layer{DiffID: l.DiffID, Names: names})
	}, t.blobOptions(l))
}

func (native) push(ctx context.Context, t *track, b *convert.Blob) error {
	return t.chain.Push(ctx, b.Layer(), "converted layer "+b.Descriptor().Digest.String())
}

func (native) found(ctx context.Context, t *track, _ convert.Layer, desc ocispec.Descriptor, blob fetcher.Blob) (convert.Packed, error) {
	return convert.Packed{Descriptor: desc}, t.chain.Push(ctx, blob, "converted layer "+desc.Digest.String())
}

func (native) packed(_ convert.Layer, b *convert.Blob) convert.Packed {
	return convert.Packed{Descriptor: b.Descriptor()}
}

func (j *job) blobOptions(l convert.Layer) convert.BlobOptions {
	return convert.BlobOptions{ChainID: l.ChainID, Parent: l.Parent, Compression: j.opts.Compression, TempDir: j.opts.Dir}
}
