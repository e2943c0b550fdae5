// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math"
	"sync"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Blob is the content of an indexed gzip file.
type Blob struct {
	src fetcher.Blob
	x   *index

	ctx     context.Context // ends at Close
	cancel  context.CancelFunc
	running sync.WaitGroup // runs
	runs    chan struct{}  // holds a token for each that is under way

	mu      sync.Mutex      // guards all below
	flights map[int]*flight // by span
	recent  recentSpans
	idle    []*decoder
	closed  bool
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
	_ fetcher.Dropper     = (*Blob)(nil)
	_ fetcher.Spanner     = (*Blob)(nil)
)

// OpenOptions are how to read an indexed file.
type OpenOptions struct {
	// Recent is how many bytes of decoded spans are kept for the next read; 0
	// means DefaultRecent, and less none.
	Recent int
}

// DefaultRecent keeps a few spans of the default length.
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
	b := &Blob{src: src, x: x, flights: make(map[int]*flight), runs: make(chan struct{}, maxRuns)}
	b.recent.limit = opts.Recent
	if opts.Recent == 0 {
		b.recent.limit = DefaultRecent
	}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return b, nil
}

// Size returns the number of uncompressed bytes.
func (b *Blob) Size() int64 { return b.x.info.Size }

// Span returns the bytes [start, end) that are decoded to read the one at off.
func (b *Blob) Span(off int64) (start, end int64) {
	if off < 0 || off >= b.Size() {
		return off, off
	}
	return b.x.span(b.x.find(off))
}

// Close ends the reads in flight and closes the source.
func (b *Blob) Close() error {
	b.mu.Lock()
	closed := b.closed
	b.closed = true
	b.recent.clear()
	b.mu.Unlock()
	if closed {
		return fs.ErrClosed
	}
	b.cancel()
	b.running.Wait()
	return b.src.Close()
}

// ReadAt fills p with the uncompressed bytes from off on.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read gzip file at negative offset %d", off)
	}
	var eof error
	if rest := max(b.Size()-off, 0); int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	r := &rangeReader{ctx: ctx, b: b, off: off, end: off + int64(len(p)), ahead: false}
	defer r.leave()
	n, err := io.ReadFull(r, p)
	if err != nil {
		return n, err
	}
	return n, eof
}

// ReadRange returns a reader of uncompressed bytes [off, off+n). It decodes
// ahead of what is read.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || n > math.MaxInt64-off {
		return nil, fmt.Errorf("read %d bytes of gzip file at offset %d", n, off)
	}
	return &rangeReader{ctx: ctx, b: b, off: off, end: off + n, ahead: true}, nil
}

// Drop makes the source forget the bytes that spans of [off, off+n) are decoded
// of.
func (b *Blob) Drop(ctx context.Context, off, n int64) error {
	off = max(off, 0)
	if n = min(n, b.Size()-off); n <= 0 {
		return nil
	}
	b.mu.Lock()
	b.recent.clear()
	clear(b.flights)
	b.mu.Unlock()
	from, _ := b.x.stored(b.x.find(off))
	_, to := b.x.stored(b.x.find(off + n - 1))
	return fetcher.Drop(ctx, b.src, from, to-from)
}

// A rangeReader reads [off, end) of a Blob. It holds flights of the spans to
// come.
type rangeReader struct {
	ctx      context.Context
	b        *Blob
	off, end int64
	ahead    bool
	flights  []*flight
	data     []byte // of the first, from off on
	closed   bool
}

// Read reads from one span at most.
func (r *rangeReader) Read(p []byte) (int, error) {
	if r.closed {
		return 0, fs.ErrClosed
	}
	if r.off >= r.end || len(p) == 0 {
		return 0, r.eof(r.off >= r.end)
	}
	if r.off >= r.b.Size() {
		return 0, io.ErrUnexpectedEOF
	}
	if len(r.data) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(int64(len(p)), r.end-r.off)], r.data)
	r.data = r.data[n:]
	r.off += int64(n)
	if len(r.data) == 0 {
		r.drop(1)
	}
	return n, nil
}

func (r *rangeReader) eof(at bool) error {
	if at {
		return io.EOF
	}
	return nil
}

// next gets the content of the span that off is in.
func (r *rangeReader) next() error {
	i := r.b.x.find(r.off)
	last := r.b.x.find(min(r.end, r.b.Size()) - 1)
	for len(r.flights) > 0 && r.flights[0].span < i {
		r.drop(1) // a span without content
	}
	if err := r.board(i, last); err != nil {
		return err
	}
	data, err := r.flights[0].wait(r.ctx)
	if err != nil {
		return err
	}
	start, _ := r.b.x.span(i)
	r.data = data[r.off-start:]
	return nil
}

// board joins the flights of what is to be read next, from span i on.
func (r *rangeReader) board(i, last int) error {
	if n := len(r.flights); n > 1 || n == 1 && (!r.ahead || i == last) {
		return nil
	}
	next := i + len(r.flights)
	flights, err := r.b.join(next, last)
	if err != nil {
		return err
	}
	r.flights = append(r.flights, flights...)
	return nil
}

// drop leaves the first n flights.
func (r *rangeReader) drop(n int) {
	r.b.leave(r.flights[:n])
	clear(r.flights[:n])
	r.flights = r.flights[n:]
}

// Close abandons what is not read.
func (r *rangeReader) Close() error {
	r.leave()
	return nil
}

func (r *rangeReader) leave() {
	if !r.closed {
		r.closed = true
		r.drop(len(r.flights))
	}
}
