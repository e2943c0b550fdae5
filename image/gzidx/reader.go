// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// DefaultSpan is how far apart points are if nothing else is said: 1 MiB, as
// the reference has it.
const DefaultSpan = 1 << 20

// minSpan is the least that the reference takes: an index of points that are
// closer would be larger than the file.
const minSpan = 64 << 10

// Options are how to make an index.
type Options struct {
	// Span is how many uncompressed bytes lie between two points, about; 0
	// means DefaultSpan. What a reader decodes for a byte grows with it, and
	// the index shrinks.
	Span int64
}

// A Reader inflates a gzip stream of one member or more, and notes points on
// the way. It is not safe for concurrent use.
type Reader struct {
	f    *inflater
	mark *marker
	pack *packer
	span int64

	base int64 // uncompressed bytes before those in f.out
	rd   int   // what of f.out was handed out
	err  error

	summed    int    // what of f.out the sums below cover
	crc       uint32 // CRC-32 of the member
	started   int64  // where the member starts
	sum, tail summer // of what follows the last point, and the candidate

	candidate *pin   // the last boundary: the last before the next multiple of span?
	waiting   []*pin // points-to-be; what follows is yet to show their window
	points    []point
	sums      []uint32
}

// readerOut is how much a Reader decodes at once (bytes), the window included.
const readerOut = windowSize + 128<<10 + slack

// NewReader returns a Reader of the gzip stream r, which it reads to its end.
// Zeros behind the last member are ignored, anything else there is an error.
func NewReader(r io.Reader, opts Options) *Reader {
	span := opts.Span
	if span == 0 {
		span = DefaultSpan
	}
	z := &Reader{f: newInflater(), mark: &marker{f: newInflater()}, pack: newPacker(), span: max(span, minSpan)}
	z.f.out = make([]byte, readerOut)
	z.f.leaving = z.leave
	z.f.reset(r, 0)
	return z
}

// Read reads uncompressed bytes. Errors of the class ErrCorrupt say what is
// wrong with the stream; others are those of the reader below.
func (z *Reader) Read(p []byte) (int, error) {
	for z.rd == z.f.w {
		if z.err != nil {
			return 0, z.err
		}
		if len(p) == 0 {
			return 0, nil
		}
		z.err = z.step()
	}
	n := copy(p, z.f.out[z.rd:z.f.w])
	z.rd += n
	return n, nil
}

// step decodes until there is no more room, and returns io.EOF at the end. All
// that is decoded must have been handed out.
func (z *Reader) step() error {
	err := z.decode()
	switch {
	case isFormat(err):
		// What came before is right, as far as anybody knows.
		err = corruptf(z.f.bitPos()/8, "%s", err)
	case errors.Is(err, io.EOF):
		if err := z.finish(); err != nil {
			return err
		}
	}
	return err
}

func (z *Reader) decode() error {
	f := z.f
	if len(f.out)-f.w < slack {
		z.slide()
	}
	for {
		if !f.inside {
			if err := z.nextBlock(); err != nil {
				return err
			}
		}
		ended, err := f.body()
		z.account()
		if err != nil || !ended {
			return err
		}
	}
}

// nextBlock reads all that lies before the next block's content.
func (z *Reader) nextBlock() error {
	f := z.f
	if z.candidate == nil {
		if err := z.beginMember(readHeader); err != nil {
			return err
		}
	} else if f.final {
		if err := z.endMember(); err != nil {
			return err
		}
		if err := z.beginMember(nextMember); err != nil {
			return err
		}
	}
	z.boundary()
	return f.header()
}

func (z *Reader) beginMember(header func(*input) error) error {
	if err := header(&z.f.input); err != nil {
		return err
	}
	z.f.begin()
	z.f.low, z.crc, z.started = z.f.w, 0, z.pos()
	return nil
}

func (z *Reader) endMember() error {
	crc, size, err := readTrailer(&z.f.input)
	if err != nil {
		return err
	}
	if crc != z.crc {
		return corruptf(z.f.bitPos()/8-memberTrailer, "CRC of member is %08x, computed %08x", crc, z.crc)
	}
	if got := uint32(z.pos() - z.started); got != size {
		return corruptf(z.f.bitPos()/8-4, "size of member is %d, decoded %d modulo 1<<32", size, got)
	}
	return nil
}

// pos returns how many uncompressed bytes there were.
func (z *Reader) pos() int64 { return z.base + int64(z.f.w) }

// account adds to the sums what was decoded since the last time.
func (z *Reader) account() {
	p := z.f.out[z.summed:z.f.w]
	z.crc = crc32.Update(z.crc, crc32.IEEETable, p)
	z.sum.add(p)
	z.tail.add(p)
	z.summed = z.f.w
}

// boundary makes the boundary before the next block a candidate.
func (z *Reader) boundary() {
	c, de := z.candidate, z.pos()
	if c != nil && c.de == de && de == 0 {
		return // the first point stays where the file starts
	}
	z.elect(de)
	z.candidate = &pin{de: de, bit: z.f.bitPos(), at: z.f.w, low: z.f.low, sum: z.sum}
	z.tail.reset()
}

// elect makes the candidate a point if a multiple of the span lies between it
// and next, where the next boundary is.
func (z *Reader) elect(next int64) {
	c := z.candidate
	if c == nil || c.de == next || (next-1)/z.span*z.span < c.de {
		return
	}
	if c.de > 0 {
		z.sums = c.sum.appendTo(z.sums)
		z.sum, z.tail = z.tail, z.sum
	}
	z.waiting = append(z.waiting, c)
}

// leave has pins take what they need of compressed bytes about to be forgotten.
func (z *Reader) leave(p []byte, off int64) {
	for _, w := range z.waiting {
		w.leave(p, off)
	}
	if z.candidate != nil {
		z.candidate.leave(p, off)
	}
}

// slide makes room for output.
func (z *Reader) slide() {
	z.settle(false)
	f := z.f
	shift := f.w - windowSize
	for _, w := range append(z.waiting, z.candidate) {
		w.keepWindow(f.out)
		w.at -= shift
	}
	copy(f.out, f.out[shift:f.w])
	f.w, f.low = f.w-shift, max(f.low-shift, 0)
	z.base += int64(shift)
	z.rd, z.summed = f.w, f.w
}

// settle turns those that wait into points, unless what is still to come can
// refer to their windows.
func (z *Reader) settle(all bool) {
	for len(z.waiting) > 0 && (all || z.pos()-z.waiting[0].de >= windowSize) {
		p := z.waiting[0]
		z.waiting = z.waiting[1:]
		p.keepWindow(z.f.out)
		p.leave(z.f.in[:z.f.end], z.f.at)
		z.mark.clean(p.window, p.data, uint8(p.bit%8))
		z.points = append(z.points, z.pack.point(p))
	}
}

// finish makes points of all that deserve it, at the end.
func (z *Reader) finish() error {
	z.elect(z.pos())
	if len(z.points)+len(z.waiting) == 0 {
		z.waiting = append(z.waiting, z.candidate) // of a file without content
	}
	z.settle(true)
	z.sums = z.sum.appendTo(z.sums)
	if err := z.pack.err; err != nil {
		return fmt.Errorf("compress window: %w", err)
	}
	return nil
}
