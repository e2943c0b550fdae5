// SPDX-License-Identifier: Apache-2.0

// Package spans serves content that is made in spans, of bytes stored in a
// blob: the content of a compressed file, from each point where decoding can
// begin to the next. A [Blob] has what is the same for all formats. A format
// brings a [Table] of its spans, and a [Decoder].
//
// The one thing to know: spans are decoded apart from the reads that want them.
// All who want a span share one decoding, and each gets what was found right of
// it as soon as it was. It goes on until it is done, or until all have left of
// whom nobody had a part of it, and Close waits for those under way.
package spans

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Info is what the index of a stored file says of it.
type Info struct {
	Size           int64 // bytes of content
	CompressedSize int64 // bytes of the file
}

// A Table says where spans are. They follow each other without gaps, from byte
// 0 of the content on; a span may be empty.
type Table interface {
	// Size returns the number of bytes of content.
	Size() int64

	// Find returns the span that byte off of the content is in.
	Find(off int64) int

	// Span returns which bytes [start, end) of the content span i is.
	Span(i int) (start, end int64)

	// Stored returns the bytes [from, to) of the source that span i is made
	// of. The next span's may begin before to, and do not begin before from.
	Stored(i int) (from, to int64)
}

// A Decoder makes spans of what is stored. It is used by one at a time, and for
// one stream after the other.
type Decoder interface {
	// Reset begins a stream: r starts where what is stored of span i does.
	Reset(r io.Reader, i int) error

	// Decode decodes span i, which is that of Reset or, after one without an
	// error, the next. It calls found whenever more of its content was found
	// right, with all of it from the span's start on, in memory that nobody
	// changes any more; without an error, it did so with the whole content. It
	// passes on what found fails with.
	Decode(i int, found func(content []byte) error) error
}

// A Format is how content is stored.
type Format struct {
	Name       string         // of the source in errors, such as "gzip file"
	NewDecoder func() Decoder // returns a new one

	// Part is in what steps content is found right before the end of its span,
	// bytes; 0 if only with all of it.
	Part int

	// Changed is the class of a Decoder's errors for bytes of the source that
	// are wrong. Copies of them are dropped, and read again. Corrupt is that
	// of other errors that concern one span alone.
	Changed, Corrupt error

	Recent int // what Options have it mean that Recent is 0, bytes
}

// Options are how to read content.
type Options struct {
	// Recent is how many bytes of the spans that were read last are kept, for
	// ten seconds after the last read; one span if that is longer, and none
	// if it is negative: then spans are decoded as far as is wanted, and who
	// wants more has the rest decoded behind the same again, but not fetched
	// again. 0 is as many as is good for the format.
	Recent int
}

const (
	// keepFor is how long a Blob keeps what nobody uses: a hundred images may
	// be open of which few are read.
	keepFor = 10 * time.Second

	// maxIdle is how many decoders a Blob keeps, of up to 0.6 MB each.
	maxIdle = 2
)

// A Blob is content that is made in spans. One byte of a span costs as much to
// read as all that lies before it there.
type Blob struct {
	src    fetcher.Blob
	table  Table
	format Format
	parts  bool // spans are decoded as far as is wanted

	ctx     context.Context // ends at Close
	cancel  context.CancelFunc
	running sync.WaitGroup      // runs
	work    *semaphore.Weighted // bytes of what is being decoded

	mu      sync.Mutex      // guards all below
	flights map[int]*flight // by span
	recent  recentSpans
	heads   heads
	idle    []Decoder
	timer   *time.Timer // lets go of recent and idle; nil before the first read
	closed  bool
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
	_ fetcher.Dropper     = (*Blob)(nil)
	_ fetcher.Expecter    = (*Blob)(nil)
	_ fetcher.Spanner     = (*Blob)(nil)
)

// New returns the content that table says is stored in src, in format f. The
// Blob owns src.
func New(ctx context.Context, src fetcher.Blob, table Table, f Format, opts Options) *Blob {
	b := &Blob{
		src: src, table: table, format: f,
		work: semaphore.NewWeighted(maxWork), flights: make(map[int]*flight),
		parts:  f.Part > 0 && opts.Recent < 0,
		recent: recentSpans{limit: cmp.Or(opts.Recent, f.Recent)},
	}
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return b
}

// Size returns the number of bytes of content.
func (b *Blob) Size() int64 { return b.table.Size() }

// Span returns the bytes [start, end) that are decoded to read the one at off;
// none if off is outside the content.
func (b *Blob) Span(off int64) (start, end int64) {
	if off < 0 || off >= b.Size() {
		return off, off
	}
	return b.table.Span(b.table.Find(off))
}

// Parts reports whether the beginning of a span costs less than all of it.
func (b *Blob) Parts() bool { return b.parts }

// Close ends the reads in flight and closes the source.
func (b *Blob) Close() error {
	b.mu.Lock()
	closed := b.closed
	b.closed = true
	b.letGo()
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	if closed {
		return fs.ErrClosed
	}
	b.cancel()
	b.running.Wait()
	return b.src.Close()
}

// ReadAt fills p with the content from byte off on. Of up to 8 MiB that are not
// kept, it reads the source once.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at negative offset %d", b.format.Name, off)
	}
	var eof error
	if rest := max(b.Size()-off, 0); int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	r := &rangeReader{ctx: ctx, b: b, off: off, end: off + int64(len(p)), ahead: false}
	defer func() { _ = r.Close() }() // never fails
	n, err := io.ReadFull(r, p)
	if err == nil {
		err = eof
	}
	return n, err
}

// ReadRange returns a reader of the content [off, off+n). It decodes ahead of
// what is read.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || n > math.MaxInt64-off {
		return nil, fmt.Errorf("read %d bytes of %s at offset %d", n, b.format.Name, off)
	}
	return &rangeReader{ctx: ctx, b: b, off: off, end: off + n, ahead: true}, nil
}

// Drop forgets the spans that hold bytes [off, off+n), and makes the source
// forget what they are made of.
func (b *Blob) Drop(ctx context.Context, off, n int64) error {
	first, last, ok := b.cut(off, n)
	if !ok {
		return nil
	}
	b.mu.Lock()
	b.recent.drop(first, last)
	b.heads.drop(first, last)
	maps.DeleteFunc(b.flights, func(i int, _ *flight) bool { return first <= i && i <= last })
	b.mu.Unlock()
	from, to := b.stored(first, last)
	return fetcher.Drop(ctx, b.src, from, to-from)
}

// Expect has what bytes [off, off+n) are made of fetched.
func (b *Blob) Expect(ctx context.Context, off, n int64) error {
	var from, to int64
	if first, last, ok := b.cut(off, n); ok {
		from, to = b.stored(first, last)
	}
	return fetcher.Expect(ctx, b.src, from, to-from)
}

// cut returns the first and the last span of bytes [off, off+n), false if there
// are none.
func (b *Blob) cut(off, n int64) (first, last int, ok bool) {
	off = max(off, 0)
	if n = min(n, b.Size()-off); n <= 0 {
		return 0, 0, false
	}
	return b.table.Find(off), b.table.Find(off + n - 1), true
}

// stored returns the bytes [from, to) of the source that spans are made of.
func (b *Blob) stored(first, last int) (from, to int64) {
	from, _ = b.table.Stored(first)
	_, to = b.table.Stored(last)
	return from, to
}

// lend returns a decoder; giveBack makes it idle.
func (b *Blob) lend() Decoder {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.idle); n > 0 {
		d := b.idle[n-1]
		b.idle = b.idle[:n-1]
		return d
	}
	return b.format.NewDecoder()
}

func (b *Blob) giveBack(d Decoder) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.idle) < maxIdle && !b.closed {
		b.idle = append(b.idle, d)
	}
}

// linger has what is kept let go of, but not soon. b.mu is held.
func (b *Blob) linger() {
	if b.timer != nil {
		b.timer.Reset(keepFor)
		return
	}
	b.timer = time.AfterFunc(keepFor, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.letGo()
	})
}

// letGo forgets what is kept. b.mu is held.
func (b *Blob) letGo() {
	b.recent, b.heads = recentSpans{limit: b.recent.limit}, heads{}
	b.idle = nil
}
