// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"context"
	"fmt"
	"io"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/spans"
)

// A Blob is the content of an indexed zstd file.
type Blob = spans.Blob

// OpenOptions are how to read an indexed file.
type OpenOptions = spans.Options

// DefaultRecent is what OpenOptions stand for whose Recent is 0, in bytes: a few
// spans of the default length.
const DefaultRecent = 16 << 20

// Open returns the content of the zstd file src by its index, which it reads
// whole. The result owns src. The error is of class [ErrCorrupt] where the
// index is none, and [ErrChanged] where it is that of a file of another size.
func Open(ctx context.Context, src fetcher.Blob, index io.ReaderAt, indexSize int64) (*Blob, error) {
	return OpenWith(ctx, src, index, indexSize, OpenOptions{})
}

// OpenWith is Open with options.
func OpenWith(ctx context.Context, src fetcher.Blob, index io.ReaderAt, indexSize int64, opts OpenOptions) (*Blob, error) {
	x, err := readIndex(index, indexSize)
	if err != nil {
		return nil, err
	}
	if src.Size() != x.CompressedSize {
		return nil, fmt.Errorf("%w: %d bytes, index is of %d", ErrChanged, src.Size(), x.CompressedSize)
	}
	return spans.New(ctx, src, x, spans.Format{
		Name:       "zstd file",
		NewDecoder: func() spans.Decoder { return &spanDecoder{x: x, d: newDecoder(nil)} },
		Part:       pieceSize,
		Changed:    ErrChanged,
		Corrupt:    ErrCorrupt,
		Recent:     DefaultRecent,
	}, opts), nil
}
