// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A spanDecoder decodes spans of bytes of the zstd file that follow each other.
type spanDecoder struct {
	x   *index
	d   *decoder
	r   io.Reader
	pos int64 // of r in the zstd file
}

// Reset makes r, whose first byte is that of span i, what is decoded.
func (s *spanDecoder) Reset(r io.Reader, i int) error {
	s.r, s.pos = r, s.x.spans[i].pos
	return nil
}

// Decode decodes span i and checks what came out.
func (s *spanDecoder) Decode(i int, found func([]byte) error) error {
	from, to := s.x.Stored(i)
	_, err := io.CopyN(io.Discard, s.r, from-s.pos) // between two frames
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read up to byte %d: %w", from, err)
	}
	p, err := s.x.decode(s.d, s.r, i)
	s.pos, s.d.out = to, output{}
	if errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: bytes %d to %d: %w", ErrChanged, from, to, err)
	}
	if err != nil {
		return err
	}
	return found(p)
}

// decode returns the content of span i, whose part of the zstd file is at hand
// in r. An error of the class [ErrCorrupt] tells that r or the index is wrong;
// others are those of r.
func (x *index) decode(d *decoder, r io.Reader, i int) ([]byte, error) {
	s := &x.spans[i]
	var st *state
	var past *past
	var err error
	if s.state > 0 {
		if st, err = parseState(x.states[s.at:][:s.state], s.size); err != nil {
			return nil, err
		}
		if past, err = st.past(d); err != nil {
			return nil, err
		}
	}
	part := &io.LimitedReader{R: r, N: s.stored}
	d.reset(part, int(s.size))
	if st != nil {
		if err := st.restore(d, past); err != nil {
			return nil, err
		}
	}
	for int64(len(d.out.buf)) < s.size {
		err := d.step()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && part.N == 0 {
			return nil, malformed("%d bytes of content, index says %d", len(d.out.buf), s.size)
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, malformed("%v, which has no index", err)
		}
		if err != nil {
			return nil, err
		}
	}
	if d.pos != s.stored {
		return nil, malformed("content in %d bytes, index says %d", d.pos, s.stored)
	}
	if got := crc32.Checksum(d.out.buf, castagnoli); got != s.crc {
		return nil, malformed("CRC of content is %08x, index says %08x", got, s.crc)
	}
	return d.out.buf, nil
}
