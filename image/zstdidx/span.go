// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"errors"
	"fmt"
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

// Decode decodes span i and checks what comes out.
func (s *spanDecoder) Decode(i int, found func([]byte) error) error {
	from, to := s.x.Stored(i)
	_, err := io.CopyN(io.Discard, s.r, from-s.pos) // between two frames
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read up to byte %d: %w", from, err)
	}
	err = s.x.decode(s.d, s.r, i, found)
	s.pos, s.d.out = to, output{}
	if errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: bytes %d to %d: %w", ErrChanged, from, to, err)
	}
	return err
}

// decode decodes span i, whose part of the zstd file is at hand in r. An error of
// the class [ErrCorrupt] tells that r or the index is wrong; others are those of
// r or of found.
func (x *index) decode(d *decoder, r io.Reader, i int, found func([]byte) error) error {
	s := &x.spans[i]
	part := &io.LimitedReader{R: r, N: s.stored}
	if err := x.restore(d, part, s); err != nil {
		return err
	}
	for right := 0; int64(right) < s.size; {
		err := d.step()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && part.N == 0 {
			return malformed("%d bytes of content, index says %d", len(d.out.buf), s.size)
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return malformed("%v, which has no index", err)
		}
		if err != nil {
			return err
		}
		if right, err = x.find(d.out.buf, i, right, found); err != nil {
			return err
		}
	}
	if d.pos != s.stored {
		return malformed("content in %d bytes, index says %d", d.pos, s.stored)
	}
	return nil
}

// find checks what pieces of span i are whole in p, behind the bytes that are
// right, and tells found of them. It returns how many bytes are right then.
func (x *index) find(p []byte, i, right int, found func([]byte) error) (int, error) {
	before := right
	for right < len(p) {
		end := min(right+pieceSize, int(x.spans[i].size))
		if end > len(p) {
			break
		}
		if err := x.checkPiece(i, right, p[right:end]); err != nil {
			return 0, err
		}
		right = end
	}
	if right == before {
		return right, nil
	}
	return right, found(p[:right:right])
}

// restore makes d ready to decode span s of r.
func (x *index) restore(d *decoder, r io.Reader, s *span) error {
	if s.state == 0 {
		d.reset(r, int(s.size))
		return nil
	}
	st, err := parseState(x.states[s.at:][:s.state], s.size)
	if err != nil {
		return err
	}
	past, err := st.past(d)
	if err != nil {
		return err
	}
	d.reset(r, int(s.size))
	return st.restore(d, past)
}
