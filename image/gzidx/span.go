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

// Decode decodes span i and checks what came out. The input must be where the
// span starts.
func (d *decoder) Decode(i int, found func([]byte) error) error {
	window, err := d.x.window(i)
	if err != nil {
		return err
	}
	start, end := d.x.Span(i)
	n := int(end - start)
	f := d.f
	f.out = make([]byte, windowSize+min(n, firstRoom)+slack)
	f.w, f.low = copy(f.out, window), 0
	f.begin()
	err = d.blocks(i, windowSize+n+slack)
	out := f.out[:f.w]
	f.out = nil
	if err != nil {
		return d.changed(i, err)
	}
	if err := d.check(i, out); err != nil {
		return err
	}
	return found(out[windowSize:])
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
// most is how long the output may become.
func (d *decoder) blocks(i, most int) error {
	f := d.f
	last := i+1 == len(d.x.list)
	for last || f.bitPos() != d.x.list[i+1].bitPos() {
		if !last && f.bitPos() > d.x.list[i+1].bitPos() {
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
		if err := d.block(most); err != nil {
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
func (d *decoder) block(most int) error {
	f := d.f
	for {
		ended, err := f.body()
		if err != nil || ended {
			return err
		}
		if len(f.out) >= most {
			return errTooLong
		}
		out := make([]byte, min(2*len(f.out), most))
		copy(out, f.out[:f.w])
		f.out = out
	}
}

// check checks the content of span i, which follows its window in out: by its
// checksum or, if the index is not ours, by the next window.
func (d *decoder) check(i int, out []byte) error {
	start, end := d.x.Span(i)
	if got := int64(len(out) - windowSize); got != end-start {
		return fmt.Errorf("%w: span %d has %d bytes, decoded %d", ErrChanged, i, end-start, got)
	}
	if d.x.sums != nil {
		if got := crc32.Checksum(out[windowSize:], castagnoli); got != d.x.sums[i] {
			return fmt.Errorf("%w: CRC of span %d is %08x, computed %08x", ErrChanged, i, d.x.sums[i], got)
		}
		return nil
	}
	if i+1 == len(d.x.list) {
		return nil
	}
	next, err := d.x.window(i + 1)
	if err != nil {
		return err
	}
	if !bytes.Equal(next, out[len(out)-windowSize:]) {
		return fmt.Errorf("%w: span %d does not end with the window of the next", ErrChanged, i)
	}
	return nil
}
