// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
)

const (
	defaultSpan    = 1 << 20
	defaultMaxSpan = 16 << 20
	// maxSpan bounds what one byte can cost to read, bytes of content.
	maxSpan = 64 << 20
	// maxStored bounds the same, bytes of the zstd file.
	maxStored = 128 << 20
	// maxIdle is how much of a zstd file without content a span may have
	// between its blocks, bytes: frames to be skipped.
	maxIdle = 64 << 10
	// maxRefs bounds what refs are kept, of 16 bytes each: the slowest encoders
	// make a quarter of it in the distance that is planned ahead.
	maxRefs = 4 << 20
)

// Options say what an index is to be like.
type Options struct {
	// Span is the least distance of the points where reading can begin, bytes
	// of content; 1 MiB if 0.
	Span int64

	// MaxSpan is the greatest distance, bytes of content; 16 MiB if 0, 64 MiB at
	// most. Points are more than Span apart where they would need much history.
	MaxSpan int64
}

// clamped returns o with defaults and within its bounds.
func (o Options) clamped() Options {
	if o.Span <= 0 {
		o.Span = defaultSpan
	}
	if o.MaxSpan <= 0 {
		o.MaxSpan = defaultMaxSpan
	}
	o.MaxSpan = min(max(o.MaxSpan, maxBlock), maxSpan)
	o.Span = min(o.Span, o.MaxSpan)
	return o
}

// A Reader decompresses a zstd stream and notes points on the way, so that
// reading can begin there later.
type Reader struct {
	d    *decoder
	err  error
	plan planner

	served int   // bytes of d.out.buf that were read
	size   int64 // bytes decoded
	end    int64 // of the last block with content, in the zstd file
	passed int64 // steps of the planner in the frame, up to the last point
}

// NewReader returns the content of the zstd stream r, of any number of frames.
// An error of it is [ErrCorrupt] where r is no zstd stream, and
// errors.ErrUnsupported where it needs a dictionary or a window of more than
// 128 MiB.
func NewReader(r io.Reader, opts Options) *Reader {
	d := newDecoder(r)
	d.hash = xxhash.New()
	z := &Reader{d: d, plan: planner{opts: opts.clamped(), out: &d.out}}
	return z
}

// Read reads the content. At io.EOF the index is complete.
func (r *Reader) Read(p []byte) (int, error) {
	for r.served == len(r.d.out.buf) {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.step()
	}
	n := copy(p, r.d.out.buf[r.served:])
	r.served += n
	return n, nil
}

// step decodes a little more.
func (r *Reader) step() error {
	d := r.d
	r.look()
	r.slide()
	from := len(d.out.buf)
	if err := d.step(); err != nil {
		if err == io.EOF { //nolint:errorlint // as step returns it
			r.plan.finish(r.size, r.end)
		}
		return err
	}
	if n := len(d.out.buf) - from; n > 0 {
		r.size += int64(n)
		r.end = d.pos
	}
	if !d.first {
		r.plan.note(&d.tables)
	}
	return nil
}

// look considers the place before the next step as one where a span may begin.
func (r *Reader) look() {
	d, p := r.d, &r.plan
	if d.inside && d.first {
		r.passed = 0
		return // the place before the frame's header was considered
	}
	last, passed := p.last(), int64(0)
	if d.inside {
		passed = d.content / p.step(d.frame.window)
	}
	switch {
	case last == nil:
	case last.at == r.size:
		p.pop() // a place before nothing
	case d.pos-r.end > maxIdle || d.pos-p.points[0].pos > maxStored-2*maxBlock || len(d.out.refs) > maxRefs:
		p.finish(r.size, r.end)
	case r.size-last.at+maxBlock > p.opts.MaxSpan:
	case !d.inside && r.size-last.at >= p.opts.Span/2:
	case passed > r.passed:
	default:
		return
	}
	r.passed = passed
	p.add(point{
		at: r.size, end: r.end, pos: d.pos, inside: d.inside,
		state: state{frame: d.frame, reps: d.reps, tables: d.tables.recipes},
	})
}

// slide makes room for a block.
func (r *Reader) slide() {
	d := r.d
	keep := len(d.out.buf)
	if d.inside {
		keep = max(keep-d.frame.window, d.out.frame)
	}
	keep = min(keep, r.plan.keep(), r.served)
	before := len(d.out.buf)
	d.out.slide(max(keep, 0), maxBlock)
	r.served -= before - len(d.out.buf)
}

// WriteIndex writes the index of all that was read, and returns its size,
// bytes. It is to be called when Read has returned io.EOF.
func (r *Reader) WriteIndex(w io.Writer) (int64, error) {
	if r.err != io.EOF { //nolint:errorlint // as Read returned it
		return 0, errors.New("write zstd index before the end of the stream")
	}
	x := index{Info: Info{Size: r.size, CompressedSize: r.d.pos}, spans: r.plan.spans, sums: r.plan.sums, states: r.plan.states}
	n, err := w.Write(x.marshal())
	if err != nil {
		return int64(n), fmt.Errorf("write zstd index: %w", err)
	}
	return int64(n), nil
}
