// SPDX-License-Identifier: Apache-2.0

// Package pipeline rebuilds the layers of images in user space, from a source
// to a target: download, decompress, apply, compress and upload are one stream
// per layer, and layers follow each other closely.
//
//	layer n    download ▸ decompress ▸ apply ▸ compress │ upload
//	layer n+1     download ahead                        │ ▸ decompress ▸ apply ▸ …
//
// The one thing to know: memory is bounded whatever the image. What is ahead
// waits for what is behind, and only the blobs themselves are on disk. The
// bytes that come out depend on the source and the options, not on timing or
// the number of workers.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// Options are the choices of a Pipeline.
type Options struct {
	// Dir takes the layers while an image is built; os.TempDir if empty.
	Dir string

	// VirtualSize is the size of the disk in bytes; 64 GiB if zero.
	VirtualSize int64

	// BaseLayer is a block layer file with a file system, which becomes the
	// bottom layer. If it is empty, a file system is made in the bottom layer.
	BaseLayer string

	// Flatten merges all layers into one.
	Flatten bool

	// Compression of the blobs. Its workers are shared by all layers.
	Compression zfile.Options

	// Cache is asked for layers before they are built, unless it is nil.
	Cache Cache

	// Report, if not nil, is told how far each layer is. It is called by
	// several goroutines, often, and must not block.
	Report func(Event)
}

// A Cache knows layers that were converted before.
type Cache interface {
	// Find returns the blob that the layer has become, if the target has it,
	// and opens it for reads. It returns a nil blob if there is none.
	Find(ctx context.Context, l convert.Layer) (ocispec.Descriptor, fetcher.Blob, error)

	// Add notes what the layer has become. The target has it.
	Add(ctx context.Context, l convert.Layer, blob ocispec.Descriptor) error
}

// A Stage is what is being done to a layer.
type Stage int

// The stages of a layer.
const (
	Applying  Stage = iota // Done and Total are bytes of the source's blob
	Packing                // of all layers as one; there is no telling how far
	Uploading              // Done and Total are bytes of the new blob
	Finished               // Total is the size of the new blob
	Reused                 // as Finished, and nothing was built
)

// An Event says how far a layer is.
type Event struct {
	Layer       convert.Layer
	Stage       Stage
	Done, Total int64 // bytes
	Blob        ocispec.Descriptor
}

// A Source is where blobs are downloaded from. It is a part of [store.Source].
type Source interface {
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// A Pipeline rebuilds layers. It may be used by several goroutines.
type Pipeline struct {
	src  Source
	dst  store.Target
	opts Options
}

var _ convert.Builder = (*Pipeline)(nil)

// New returns a Pipeline from src to dst.
func New(src Source, dst store.Target, opts Options) *Pipeline {
	if opts.Compression.Workers <= 0 {
		opts.Compression.Workers = runtime.GOMAXPROCS(0)
	}
	return &Pipeline{src: src, dst: dst, opts: opts}
}

// Build rebuilds the layers of an image.
func (p *Pipeline) Build(ctx context.Context, img convert.Image) (blobs []ocispec.Descriptor, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	j := &job{Pipeline: p, img: img, chain: build.New(build.Options{Dir: p.opts.Dir, VirtualSize: p.opts.VirtualSize})}
	defer func() {
		cancel(nil) // before the downloads ahead are waited for
		err = errors.Join(err, j.close())
	}()
	var base []ocispec.Descriptor
	if p.opts.BaseLayer != "" {
		if base, err = j.base(ctx); err != nil {
			return nil, fmt.Errorf("base layer %s: %w", p.opts.BaseLayer, err)
		}
	}
	if p.opts.Flatten {
		return j.flatten(ctx)
	}
	blobs, err = convert.InOrder(ctx, img.Layers, j.apply)
	return append(base, blobs...), err
}

// base puts the base layer at the bottom, and in the target unless it is
// merged with others.
func (j *job) base(ctx context.Context) ([]ocispec.Descriptor, error) {
	layer, err := file.Open(j.opts.BaseLayer)
	if err != nil {
		return nil, err
	}
	if err := j.chain.Push(ctx, layer, j.opts.BaseLayer); err != nil {
		return nil, errors.Join(err, layer.Close())
	}
	if j.opts.Flatten {
		return nil, nil
	}
	b, err := convert.WrapFile(j.opts.BaseLayer, j.opts.Dir)
	if err != nil {
		return nil, err
	}
	defer b.Close() //nolint:errcheck // it is only read
	return []ocispec.Descriptor{b.Descriptor()}, j.dst.PushBlob(ctx, b.Descriptor(), b)
}
