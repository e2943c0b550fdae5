// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"context"
	"fmt"
	"io"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/spans"
)

// A Blob is the content of an indexed gzip file.
type Blob = spans.Blob

// OpenOptions are how to read an indexed file.
type OpenOptions = spans.Options

// DefaultRecent is what OpenOptions stand for whose Recent is 0, in bytes: a few
// spans of the default length.
const DefaultRecent = 4 << 20

// Open returns the content of the gzip file src by its index, of indexSize
// bytes, which is read whole and not kept open. The Blob owns src. An index
// that is not one fails with ErrCorrupt, one of another file with ErrChanged,
// one whose points are farther apart than MaxSpan with errors.ErrUnsupported.
func Open(ctx context.Context, src fetcher.Blob, index io.ReaderAt, indexSize int64) (*Blob, error) {
	return OpenWith(ctx, src, index, indexSize, OpenOptions{})
}

// OpenWith is Open with options.
func OpenWith(ctx context.Context, src fetcher.Blob, index io.ReaderAt, indexSize int64, opts OpenOptions) (*Blob, error) {
	x, err := readIndex(index, indexSize)
	if err != nil {
		return nil, err
	}
	if got, want := src.Size(), x.info.CompressedSize; got != want {
		return nil, fmt.Errorf("%w: it has %d bytes, indexed were %d", ErrChanged, got, want)
	}
	part := pieceSize
	if x.sums == nil {
		part = 0
	}
	return spans.New(ctx, src, x, spans.Format{
		Name:       "gzip file",
		NewDecoder: func() spans.Decoder { return &decoder{f: newInflater(), x: x} },
		Part:       part,
		Changed:    ErrChanged,
		Corrupt:    ErrCorrupt,
		Recent:     DefaultRecent,
	}, opts), nil
}
