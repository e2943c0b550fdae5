// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/convert"
)

// turbo makes layers of metadata that map into the source's layers.
type turbo struct{}

func (turbo) options(o build.Options) build.Options {
	o.Target = true
	return o
}

func (turbo) build(ctx context.Context, t *track, l convert.Layer, content io.Reader) (*convert.Blob, error) {
	return convert.NewTurboBlob(func(layer, index io.Writer) (string, error) {
		kind, err := t.chain.BuildTarget(ctx, layer, content, build.Layer{DiffID: l.DiffID, Index: index})
		return string(kind), err
	}, convert.TurboOptions{FSType: t.FSType, Compression: t.opts.Compression, TempDir: t.opts.Dir})
}

func (turbo) push(ctx context.Context, t *track, b *convert.Blob) error {
	return t.pushMeta(ctx, b.Meta(), b.Descriptor())
}

func (turbo) found(ctx context.Context, t *track, l convert.Layer, desc ocispec.Descriptor, blob fetcher.Blob) (convert.Packed, error) {
	stream, err := fetcher.ReadRange(ctx, blob, 0, blob.Size())
	if err != nil {
		return convert.Packed{}, err
	}
	defer stream.Close()
	m, err := convert.ReadMeta(stream, desc.Digest, t.FSType, t.opts.Dir)
	if err != nil {
		return convert.Packed{}, err
	}
	t.open = append(t.open, m, blob)
	return turboLayer(l, desc, m), t.pushMeta(ctx, m, desc)
}

func (turbo) packed(l convert.Layer, b *convert.Blob) convert.Packed {
	return turboLayer(l, b.Descriptor(), b.Meta())
}

func turboLayer(l convert.Layer, desc ocispec.Descriptor, m *convert.Meta) convert.Packed {
	return convert.Packed{Descriptor: desc, DiffID: m.DiffID, Format: convert.Turbo, Target: convert.TargetOf(l, m.Compression)}
}

func (t *track) pushMeta(ctx context.Context, m *convert.Meta, desc ocispec.Descriptor) error {
	return t.chain.PushTarget(ctx, m.Layer(), absent{}, "converted layer "+desc.Digest.String())
}

// absent stands for the targets of layers that others are built on: what lies
// in them is the content of files, which nothing here reads.
type absent struct{}

var errAbsent = errors.New("the content of a lower layer's files is not here")

func (absent) ReadAt(context.Context, []byte, int64) (int, error) { return 0, errAbsent }
func (absent) Size() int64                                        { return 1 << 62 } // nobody knows
func (absent) Close() error                                       { return nil }
