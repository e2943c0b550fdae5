// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// BlobOptions say what the blob of a layer is made like.
type BlobOptions struct {
	ChainID     digest.Digest // of the layer
	Parent      digest.Digest // of the layer below, empty at the bottom
	Compression zfile.Options

	// TempDir holds the compressed layer until it is complete; os.TempDir if
	// empty.
	TempDir string
}

// WriteBlob writes to w the blob of a sealed layer as registries keep it:
// compacted, compressed, and wrapped in a tar. It returns the blob's size. The
// output is a function of the layer and the options.
func WriteBlob(ctx context.Context, w io.Writer, sealed fetcher.Blob, opts BlobOptions) (size int64, err error) {
	// The tar header comes first and holds the size, so the payload has to be
	// complete before it. The file has no name: it cannot be left behind.
	payload, err := os.CreateTemp(opts.TempDir, "overlaybd-layer-")
	if err != nil {
		return 0, err
	}
	defer payload.Close()
	if err := os.Remove(payload.Name()); err != nil {
		return 0, err
	}
	n, err := compress(ctx, payload, sealed, opts)
	if err != nil {
		return 0, err
	}
	return io.Copy(w, tarblob.Wrap(io.NewSectionReader(payload, 0, n), n))
}

// compress writes the compacted layer to f as a ZFile and returns its size.
func compress(ctx context.Context, f *os.File, sealed fetcher.Blob, opts BlobOptions) (int64, error) {
	layer, err := lsmt.Open(ctx, sealed)
	if err != nil {
		return 0, err
	}
	buf := bufio.NewWriterSize(f, 1<<20)
	z, err := zfile.NewWriter(buf, opts.Compression)
	if err != nil {
		return 0, err
	}
	err = lsmt.Commit(ctx, z, layer, lsmt.CommitOptions{UUID: LayerUUID(opts.ChainID), ParentUUID: LayerUUID(opts.Parent)})
	if err = errors.Join(err, z.Close(), buf.Flush()); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}
