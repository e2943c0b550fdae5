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
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.off >= r.b.Size() {
		return 0, io.ErrUnexpectedEOF
	}
	if len(r.data) == 0 && len(p) > 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(int64(len(p)), r.end-r.off)], r.data)
	r.data = r.data[n:]
	r.off += int64(n)
	if n > 0 && len(r.data) == 0 {
		r.drop(1)
	}
	return n, nil
}

// next gets the content of the span that off is in.
func (r *rangeReader) next() error {
	i := r.b.table.Find(r.off)
	last := r.b.table.Find(min(r.end, r.b.Size()) - 1)
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
	start, _ := r.b.table.Span(i)
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
	r.closed = true
	r.drop(len(r.flights))
	return nil
}
