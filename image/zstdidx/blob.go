// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Blob is the content of a zstd file as a [fetcher.Blob]. One byte of a span
// costs as much to read as all of it; the spans read last are kept.
type Blob struct {
	src   fetcher.Blob
	x     *index
	slots chan struct{} // taken by those who decode

	mu      sync.Mutex // guards all below
	closed  bool
	flights map[int]*flight // spans being decoded
	kept    recent
	idle    []*decoder
	timer   *time.Timer // forgets what is kept; nil before there is anything
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
	_ fetcher.Dropper     = (*Blob)(nil)
	_ fetcher.Expecter    = (*Blob)(nil)
	_ fetcher.Spanner     = (*Blob)(nil)
)

// A flight is a span that one reader decodes for all who want it.
type flight struct {
	done chan struct{} // closed when the rest is valid
	p    []byte
	err  error
}

// Open returns the content of the zstd file src by its index, which it reads
// whole. The result owns src. The error is of class [ErrCorrupt] where the
// index is none, and [ErrChanged] where it is that of a file of another size.
func Open(_ context.Context, src fetcher.Blob, index io.ReaderAt, indexSize int64) (*Blob, error) {
	x, err := readIndex(index, indexSize)
	if err != nil {
		return nil, err
	}
	if src.Size() != x.CompressedSize {
		return nil, fmt.Errorf("%w: %d bytes, index is of %d", ErrChanged, src.Size(), x.CompressedSize)
	}
	return &Blob{src: src, x: x, slots: make(chan struct{}, maxDecodes), flights: map[int]*flight{}}, nil
}

// Size returns the number of bytes of content.
func (b *Blob) Size() int64 { return b.x.Size }

// Span returns the bytes of content [start, end) that are decoded with byte
// off; nothing if off is outside the content.
func (b *Blob) Span(off int64) (start, end int64) {
	if off < 0 || off >= b.x.Size {
		return off, off
	}
	s := &b.x.spans[b.x.find(off)]
	return s.start, s.start + s.size
}

// Close closes the zstd file.
func (b *Blob) Close() error {
	b.mu.Lock()
	b.closed, b.kept, b.idle = true, recent{}, nil
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	return b.src.Close()
}

// ReadAt fills p with the content from byte off on, by one request to the zstd
// file at most if nothing in it has to be read again.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read zstd content at negative offset %d", off)
	}
	var eof error
	if rest := max(b.x.Size-off, 0); int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	r := b.stream(ctx, off, int64(len(p)))
	defer r.shut()
	n, err := io.ReadFull(r, p)
	if err == nil {
		err = eof
	}
	return n, err
}

// ReadRange streams the content [off, off+n), a span at a time.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("read %d bytes at byte %d of zstd content of %d bytes", n, off, b.x.Size)
	}
	s := b.stream(ctx, off, max(min(n, b.x.Size-off), 0))
	s.short = s.end-s.off < n
	return s, nil
}

// Drop forgets the spans that hold bytes [off, off+n) and makes the source
// forget what they are made of.
func (b *Blob) Drop(ctx context.Context, off, n int64) error {
	first, last, ok := b.cut(off, n)
	if !ok {
		return nil
	}
	b.mu.Lock()
	for i := first; i <= last; i++ {
		b.kept.drop(i)
	}
	b.mu.Unlock()
	pos := b.x.spans[first].pos
	return fetcher.Drop(ctx, b.src, pos, b.x.end(last)-pos)
}

// Expect has what bytes [off, off+n) are made of fetched.
func (b *Blob) Expect(ctx context.Context, off, n int64) error {
	first, last, ok := b.cut(off, n)
	if !ok {
		return fetcher.Expect(ctx, b.src, 0, 0)
	}
	pos := b.x.spans[first].pos
	return fetcher.Expect(ctx, b.src, pos, b.x.end(last)-pos)
}

// cut returns the first and last span of bytes [off, off+n), false if there are
// none.
func (b *Blob) cut(off, n int64) (first, last int, ok bool) {
	off = max(off, 0)
	if n = min(n, b.x.Size-off); n <= 0 {
		return 0, 0, false
	}
	return b.x.find(off), b.x.find(off + n - 1), true
}

// claim returns the content of span i if it is kept, the flight that decodes
// it if there is one, and otherwise a flight that is the caller's to land.
func (b *Blob) claim(i int) (p []byte, f *flight, mine bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, nil, false, fs.ErrClosed
	}
	if p, ok := b.kept.find(i); ok {
		b.linger()
		return p, nil, false, nil
	}
	if f, ok := b.flights[i]; ok {
		return nil, f, false, nil
	}
	f = &flight{done: make(chan struct{})}
	b.flights[i] = f
	return nil, f, true, nil
}

// land hands the content of span i, or the error, to all who wait for f.
func (b *Blob) land(i int, f *flight, p []byte, err error) {
	b.mu.Lock()
	delete(b.flights, i)
	if err == nil && !b.closed {
		b.kept.keep(i, p)
		b.linger()
	}
	b.mu.Unlock()
	f.p, f.err = p, err
	close(f.done)
}

// linger has what is kept forgotten when it has not been used for a while, since
// a hundred images may be open of which few are read.
func (b *Blob) linger() {
	if b.timer != nil {
		b.timer.Reset(keepFor)
		return
	}
	b.timer = time.AfterFunc(keepFor, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.kept, b.idle = recent{}, nil
	})
}

// lend returns a decoder; give takes it back.
func (b *Blob) lend() *decoder {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.idle); n > 0 {
		d := b.idle[n-1]
		b.idle = b.idle[:n-1]
		return d
	}
	return newDecoder(nil)
}

func (b *Blob) give(d *decoder) {
	d.reset(nil, 0)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.idle) < maxIdleDecoders && !b.closed {
		b.idle = append(b.idle, d)
	}
}
