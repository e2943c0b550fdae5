// SPDX-License-Identifier: Apache-2.0

// Package pipeline rebuilds the layers of images in user space, from a source
// to one or more targets: download, decompress, apply, compress and upload are
// one stream per layer, and layers follow each other closely. Images of several
// formats are built in lockstep, of one download of each layer.
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

	// Report, if not nil, is told how far each layer is. It is called by
	// several goroutines, often, and must not block.
	Report func(Event)
}

// An Output is one of the images that a Pipeline builds.
type Output struct {
	Format convert.Format
	FSType string // of the file system: "ext4", or "erofs"
	Target store.Target

	// Cache is asked for layers before they are built, unless it is nil.
	Cache Cache

	// Foreign says that the target is another place than the source, so that
	// turbo layers need the source's layers there.
	Foreign bool

	// Mount, if not nil, makes the target have a layer of the source without
	// any transfer, or reports false.
	Mount func(ctx context.Context, desc ocispec.Descriptor) (bool, error)
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
	Copied                 // the source's layer, Total bytes, into the target
	Mounted                // the same, without a transfer
)

// An Event says how far a layer is.
type Event struct {
	Output      int // by index
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
	src     Source
	opts    Options
	outputs []Output
}

var _ convert.Builder = (*Pipeline)(nil)

// New returns a Pipeline from src to the outputs.
func New(src Source, opts Options, outputs ...Output) *Pipeline {
	if opts.Compression.Workers <= 0 {
		opts.Compression.Workers = runtime.GOMAXPROCS(0)
	}
	return &Pipeline{src: src, opts: opts, outputs: outputs}
}

// Build rebuilds the layers of an image, for outputs by their index.
func (p *Pipeline) Build(ctx context.Context, img convert.Image, outputs []int) (built [][]convert.Packed, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	j := &job{Pipeline: p, img: img}
	for _, id := range outputs {
		j.tracks = append(j.tracks, j.newTrack(id))
	}
	defer func() {
		cancel(nil) // before the downloads ahead are waited for
		err = errors.Join(err, j.close())
	}()
	built = make([][]convert.Packed, len(outputs))
	for i, t := range j.tracks {
		if p.opts.BaseLayer == "" {
			break
		}
		if built[i], err = t.base(ctx); err != nil {
			return nil, fmt.Errorf("base layer %s: %w", p.opts.BaseLayer, err)
		}
	}
	if p.opts.Flatten {
		return j.flatten(ctx)
	}
	layers, err := convert.InOrder(ctx, img.Layers, j.apply)
	for _, packed := range layers {
		for i, l := range packed {
			built[i] = append(built[i], l)
		}
	}
	return built, err
}

// flatten builds one layer of all. Turbo layers have a target each.
func (j *job) flatten(ctx context.Context) ([][]convert.Packed, error) {
	if len(j.tracks) != 1 || j.tracks[0].Format != convert.Native {
		return nil, fmt.Errorf("only native layers can be merged: %w", errors.ErrUnsupported)
	}
	merged, err := j.tracks[0].flatten(ctx)
	return [][]convert.Packed{merged}, err
}
