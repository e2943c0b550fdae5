// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"errors"
	"fmt"
	"hash/crc32"
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
	// share is which part of a zstd file its index is to be at most: a
	// hundredth.
	share = 100
)

// Options say what an index is to be like.
type Options struct {
	// Span is the least distance of the points where reading can begin, bytes
	// of content; 1 MiB if 0.
	Span int64

	// MaxSpan is the greatest distance, bytes of content; 16 MiB if 0. Points
	// are more than Span apart where they would take more than a hundredth of
	// the zstd file.
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
	opts Options
	err  error

	served int // bytes of d.out.buf that were read
	size   int64
	spans  []span
	states []byte
	open   opening
	marks  marks
	packer packer
}

// An opening is where the span at hand begins.
type opening struct {
	pos    int64 // in the zstd file
	end    int64 // of its last block with content
	size   int64 // bytes of content
	crc    uint32
	inside bool // a frame
	frame  frame
	reps   [3]int
	tables [tableCount]recipe // in force
}

// NewReader returns the content of the zstd stream r, of any number of frames.
// An error of it is [ErrCorrupt] where r is no zstd stream, and
// errors.ErrUnsupported where it needs a dictionary or a window of more than
// 128 MiB.
func NewReader(r io.Reader, opts Options) *Reader {
	z := &Reader{d: newDecoder(r), opts: opts.clamped()}
	z.d.hash = xxhash.New()
	z.d.out.marks = &z.marks
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
	if r.open.size > 0 && r.full() {
		if err := r.close(); err != nil {
			return err
		}
	}
	if r.open.size == 0 && (!d.inside || !d.first) {
		r.begin()
	}
	r.slide()
	from := len(d.out.buf)
	if err := d.step(); err != nil {
		if err == io.EOF && r.open.size > 0 { //nolint:errorlint // as step returns it
			if err := r.close(); err != nil {
				return err
			}
		}
		return err
	}
	if p := d.out.buf[from:]; len(p) > 0 {
		r.open.crc = crc32.Update(r.open.crc, castagnoli, p)
		r.open.size += int64(len(p))
		r.open.end = d.pos
		r.size += int64(len(p))
	}
	return nil
}

// begin has the span at hand, of which there is nothing yet, begin here.
func (r *Reader) begin() {
	d := r.d
	r.open = opening{pos: d.pos, inside: d.inside, frame: d.frame, reps: d.reps}
	if d.inside {
		r.open.tables = d.tables.recipes
	}
	d.tables.forget()
	r.marks.reset()
	d.out.base = len(d.out.buf)
}

// full reports whether a span may end here, or must.
func (r *Reader) full() bool {
	d, o := r.d, &r.open
	switch {
	case d.pos-o.end > maxIdle || d.pos-o.pos > maxStored/2 || o.size+maxBlock > r.opts.MaxSpan:
		return true
	case o.size < r.opts.Span:
		return false
	case !d.inside:
		return true // the next costs nothing
	}
	// Of noted history, packed, twice as much of each byte is left as of the
	// zstd file's content: what a span takes from afar repeats less.
	stored := o.end - o.pos
	packed := int64(r.marks.count) * min(2*stored, o.size) / o.size
	return packed*share <= stored
}

// slide makes room for a block.
func (r *Reader) slide() {
	d := r.d
	keep := len(d.out.buf)
	if d.inside {
		keep = max(keep-d.frame.window, d.out.frame)
	}
	if r.open.inside {
		keep = min(keep, d.out.base-r.open.frame.window)
	}
	keep = max(min(keep, r.served), 0)
	before := len(d.out.buf)
	d.out.slide(keep, maxBlock)
	r.served -= before - len(d.out.buf)
}

// close ends the span at hand.
func (r *Reader) close() error {
	o := &r.open
	s := span{pos: o.pos, stored: o.end - o.pos, size: o.size, crc: o.crc}
	if o.inside {
		st := state{frame: o.frame, reps: o.reps}
		for k, used := range r.d.tables.inherited {
			if used {
				st.tables[k] = o.tables[k]
			}
		}
		before := len(r.states)
		r.states = st.append(r.states, r.packer.pack(&r.marks, r.d.out.buf[:r.d.out.base]))
		s.state = len(r.states) - before
	}
	r.spans = append(r.spans, s)
	r.open.size = 0
	return nil
}

// WriteIndex writes the index of all that was read, and returns its size,
// bytes. It is to be called when Read has returned io.EOF.
func (r *Reader) WriteIndex(w io.Writer) (int64, error) {
	if r.err != io.EOF { //nolint:errorlint // as Read returned it
		return 0, errors.New("write zstd index before the end of the stream")
	}
	x := index{Info: Info{Size: r.size, CompressedSize: r.d.pos}, spans: r.spans, states: r.states}
	n, err := w.Write(x.marshal())
	if err != nil {
		return int64(n), fmt.Errorf("write zstd index: %w", err)
	}
	return int64(n), nil
}
