// SPDX-License-Identifier: Apache-2.0

package spans

import (
	"context"
	"io"
	"io/fs"
)

// A rangeReader reads [off, end) of a Blob. It holds flights of the spans to
// come.
type rangeReader struct {
	ctx      context.Context
	b        *Blob
	off, end int64
	ahead    bool // have more decoded, and take what there is
	flights  []*flight
	waiter   waiter
	data     []byte // what is known to be there of the first, from off on
	left     int64  // bytes of its span from off on
	closed   bool
}

// Read reads from one span at most.
func (r *rangeReader) Read(p []byte) (int, error) {
	if r.closed {
		return 0, fs.ErrClosed
	}
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.off >= r.b.Size() {
		return 0, io.ErrUnexpectedEOF
	}
	if len(r.data) == 0 && len(p) > 0 {
		if err := r.next(len(p)); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(int64(len(p)), r.end-r.off)], r.data)
	r.data = r.data[n:]
	r.off += int64(n)
	if r.left -= int64(n); n > 0 && r.left == 0 {
		r.drop(1)
	}
	return n, nil
}

// next gets content of the span that off is in. ReadAt, which wants n bytes, has
// no use for fewer, so it is not woken for them.
func (r *rangeReader) next(n int) error {
	i := r.b.table.Find(r.off)
	last := r.b.table.Find(min(r.end, r.b.Size()) - 1)
	for len(r.flights) > 0 && r.flights[0].span < i {
		r.drop(1) // a span without content
	}
	if err := r.board(i, last); err != nil {
		return err
	}
	start, end := r.b.table.Span(i)
	upto := r.off + 1
	if !r.ahead {
		upto = min(r.off+int64(n), r.end, end)
	}
	data, err := r.flights[0].wait(r.ctx, &r.waiter, int(upto-start))
	if at := int(r.off - start); len(data) > at {
		r.data, r.left = data[at:], end-r.off
		return nil // an error comes again
	}
	return err
}

// board joins the flights of what is to be read next, from span i on.
func (r *rangeReader) board(i, last int) error {
	if n := len(r.flights); n > 1 || n == 1 && (!r.ahead || i == last) {
		return nil
	}
	next := i + len(r.flights)
	flights, err := r.b.join(next, last, r.end)
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
	r.closed = true
	r.drop(len(r.flights))
	return nil
}
