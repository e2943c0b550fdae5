// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// firstRoom is how much is made room for on the word of an index (bytes).
const firstRoom = 4 << 20

// A decoder decodes spans, each as if alone, of compressed bytes that follow
// each other.
type decoder struct {
	f *inflater
	x *index

	// Of the span under way:
	i     int
	size  int    // bytes of content
	buf   []byte // window and content; the inflater has it to the end of a piece
	right int    // bytes of content whose checksums are
	found func(content []byte) error
}

// Reset makes r, whose first byte is that of span i, what is decoded.
func (d *decoder) Reset(r io.Reader, i int) error {
	p := d.x.list[i]
	d.f.reset(r, p.start())
	if p.bits == 0 {
		return nil
	}
	return d.changed(i, d.f.skip(8-p.bits))
}

// Decode decodes span i and checks what comes out. The input must be where the
// span starts.
func (d *decoder) Decode(i int, found func(content []byte) error) error {
	window, err := d.x.window(i)
	if err != nil {
		return err
	}
	start, end := d.x.Span(i)
	d.i, d.size, d.right, d.found = i, int(end-start), 0, found
	d.buf = make([]byte, windowSize+min(d.size, firstRoom)+slack)
	d.f.out = nil
	d.f.w, d.f.low = copy(d.buf, window), 0
	d.f.begin()
	d.room()
	if err = d.blocks(); err == nil {
		err = d.end()
	}
	d.buf, d.f.out, d.found = nil, nil, nil
	return d.changed(i, err)
}

// changed says of an error that the bytes of span i are wrong, if it is one.
func (d *decoder) changed(i int, err error) error {
	if !isFormat(err) {
		return err
	}
	return fmt.Errorf("%w: span %d, byte %d: %w", ErrChanged, i, d.f.bitPos()/8, err)
}

const (
	errPlace   = formatError("blocks do not end where the next span starts")
	errTooLong = formatError("more content than the span has")
	errEarly   = formatError("the file ends before the next span")
)

// blocks decodes up to the next point, or to the end of the file from the last.
func (d *decoder) blocks() error {
	f := d.f
	last := d.i+1 == len(d.x.list)
	for last || f.bitPos() != d.x.list[d.i+1].bitPos() {
		if !last && f.bitPos() > d.x.list[d.i+1].bitPos() {
			return errPlace
		}
		if f.final {
			err := d.nextMember(last)
			if err != nil {
				if last && errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			continue
		}
		if err := f.header(); err != nil {
			return err
		}
		if err := d.block(); err != nil {
			return err
		}
	}
	return nil
}

// nextMember goes on to the blocks of the next member, if there is one.
func (d *decoder) nextMember(last bool) error {
	f := d.f
	_, size, err := readTrailer(&f.input)
	if err != nil {
		return err
	}
	err = nextMember(&f.input)
	switch {
	case errors.Is(err, io.EOF) && !last:
		return errEarly
	case errors.Is(err, io.EOF) && d.x.sums == nil && size != uint32(d.x.info.Size):
		return errTooLong // or less; an index without sums has one member
	case err != nil:
		return err
	}
	f.begin()
	f.low = f.w
	return nil
}

// block decodes a block.
func (d *decoder) block() error {
	for {
		ended, err := d.f.body()
		if err == nil {
			err = d.check()
		}
		if err != nil || ended {
			return err
		}
	}
}

// check checks the pieces that are whole, and makes room for the next.
func (d *decoder) check() error {
	have, before := d.f.w-windowSize, d.right
	if have > d.size {
		return errTooLong
	}
	for end := d.pieceEnd(); d.right < end && end <= have; end = d.pieceEnd() {
		if err := d.checkPiece(d.right, end); err != nil {
			return err
		}
		d.right = end
	}
	d.room()
	if d.right == before || d.x.sums == nil {
		return nil
	}
	return d.found(d.content(d.right))
}

// pieceEnd returns where the piece ends that is to be checked next.
func (d *decoder) pieceEnd() int { return min(d.right+pieceSize, d.size) }

// content returns the first n bytes of the span, and no room to append to them.
func (d *decoder) content(n int) []byte { return d.buf[windowSize : windowSize+n : windowSize+n] }

// checkPiece checks bytes [from, to) of the content, if there is a checksum.
func (d *decoder) checkPiece(from, to int) error {
	if d.x.sums == nil {
		return nil
	}
	k := from / pieceSize
	want := d.x.pieceSum(d.i, k)
	if got := crc32.Checksum(d.content(to)[from:], castagnoli); got != want {
		return fmt.Errorf("%w: CRC of piece %d of span %d is %08x, computed %08x", ErrChanged, k, d.i, want, got)
	}
	return nil
}

// room lets the inflater go on to the end of the next piece, unless it has not
// come to that of one. Memory is not taken on the word of an index.
func (d *decoder) room() {
	if len(d.f.out)-d.f.w >= slack {
		return
	}
	need := windowSize + d.pieceEnd() + slack
	if need > len(d.buf) {
		buf := make([]byte, max(need, min(2*len(d.buf), windowSize+d.size+slack)))
		copy(buf, d.buf[:d.f.w])
		d.buf = buf
	}
	d.f.out = d.buf[:need]
}

// end checks that the span was whole. What of it is right nobody but the next
// window tells, if the index is not ours.
func (d *decoder) end() error {
	if got := d.f.w - windowSize; got != d.size {
		return fmt.Errorf("%w: span %d has %d bytes, decoded %d", ErrChanged, d.i, d.size, got)
	}
	if d.x.sums != nil {
		return nil
	}
	if d.i+1 < len(d.x.list) {
		next, err := d.x.window(d.i + 1)
		if err != nil {
			return err
		}
		if !bytes.Equal(next, d.buf[d.f.w-windowSize:d.f.w]) {
			return fmt.Errorf("%w: span %d does not end with the window of the next", ErrChanged, d.i)
		}
	}
	return d.found(d.content(d.size))
}
