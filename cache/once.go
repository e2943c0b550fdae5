// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// ReadOnce is ReadAt for a reader of a whole blob, who comes once: what is on
// disk is read from there and the rest from the source, by one request for each
// missing range. Nothing of it is kept, so that nothing else has to go.
func (b *Blob) ReadOnce(ctx context.Context, p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read blob %s at offset %d: %w", b.s.key, off, fs.ErrInvalid)
	}
	if b.closed.Load() {
		return 0, fmt.Errorf("read blob %s: %w", b.s.key, fs.ErrClosed)
	}
	end := min(off+int64(len(p)), b.Size())
	b.s.recall(off, end)
	for off+int64(n) < end {
		at := off + int64(n)
		k := b.s.readHit(p[n:end-off], at)
		b.count.hitBytes.Add(int64(k))
		if k == 0 {
			gap := b.s.missingFrom(at, end) - at
			k, err = b.readSource(ctx, p[n:int64(n)+gap], at)
		}
		if n += k; err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// missingFrom returns the end of the bytes, up to end, that are not on disk
// from off on, where the first is not. The blocks must have been recalled.
func (s *store) missingFrom(off, end int64) int64 {
	blk, last := s.geo.span(off, end)
	for blk++; blk < last && !s.onDisk(blk); blk++ {
	}
	return min(s.geo.start(blk), end)
}

// readSource fills p from the source.
func (b *Blob) readSource(ctx context.Context, p []byte, off int64) (int, error) {
	b.count.fetches.Add(1)
	n, err := readRange(ctx, b.src, p, off)
	if b.made == nil {
		b.count.fetchedBytes.Add(int64(n))
	}
	if err != nil {
		b.count.fetchErrors.Add(1)
		return n, fmt.Errorf("fetch bytes [%d, %d) of blob %s: %w", off, off+int64(len(p)), b.s.key, err)
	}
	return n, nil
}

func readRange(ctx context.Context, src fetcher.Blob, p []byte, off int64) (int, error) {
	r, err := fetcher.ReadRange(ctx, src, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	n, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Spare says that the bytes of b are at hand elsewhere, too: once nobody has
// the blob open, it is the first to go. It counts until the blob is opened
// again.
func (b *Blob) Spare() { b.s.spare.Store(true) }
