// SPDX-License-Identifier: Apache-2.0

package tarblob

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// A dump of a tar's headers is the tar without the bodies of its files: every
// header block, with the bodies of those that are about the next header (pax and
// GNU long names), in order. In the header of each file, bytes 329 to 336, where
// devices have their major number, are the offset of its body in the tar, so
// that the header's checksum is wrong. Durable; the reference implementation
// reads and writes it.
//
//	off  size  field of a header block that matters here
//	124    12  size, octal or base 256
//	148     8  checksum
//	156     1  type
//	257     6  magic
//	329     8  offset of the body, little-endian, bytes
//	482     1  of type S: blocks of more holes follow
const (
	sizeOff, sizeLen         = 124, 12
	checksumOff, checksumLen = 148, 8
	typeOff                  = 156
	bodyOff, bodyLen         = 329, 8
	extendedOff              = 482
	moreExtendedOff          = 504 // the same in such a block
)

const (
	// maxSpecial bounds the body of a header about the next one, as archive/tar
	// does.
	maxSpecial = 1 << 20

	// maxSpecials is how many may be about the same: a pax header and two long
	// names are usual, and some global ones are possible.
	maxSpecials = 16

	// maxHoles bounds the blocks of holes of a sparse file: 21 in each.
	maxHoles = 4 << 10
)

// An entry is what a tar, or the dump of its headers, has of one file.
type entry struct {
	blocks []byte // all headers, and the bodies of those about others
	last   int    // where in blocks the file's own header starts
	size   int64  // of the body in the tar, bytes; 0 if it cannot have one
	sparse bool   // the body is not the content
}

// scanner reads entries.
type scanner struct {
	r     io.Reader
	pos   int64 // in the tar, bytes
	dumps bool  // r has no bodies of files
}

// next returns the next entry. The body follows, in a tar. At the end it
// returns io.EOF.
func (s *scanner) next() (*entry, error) {
	e := &entry{}
	about := pax{size: -1}
	for range maxSpecials {
		header, err := s.block(e)
		if err != nil {
			return nil, err
		}
		n, err := field(header[sizeOff:][:sizeLen])
		if err != nil {
			return nil, fmt.Errorf("%w: size in header at byte %d: %w", ErrCorrupt, s.pos-blockLen, err)
		}
		kind := header[typeOff]
		if !special(kind) {
			if about.size >= 0 {
				n = about.size
			}
			if e.size = n; headerOnly(kind) {
				e.size = 0
			}
			e.last = len(e.blocks) - blockLen
			e.sparse = about.sparse || kind == tar.TypeGNUSparse
			return e, s.holes(e, kind)
		}
		body, err := s.special(e, n)
		if err != nil {
			return nil, err
		}
		if kind == tar.TypeXHeader {
			about.read(body)
		}
	}
	return nil, fmt.Errorf("%w: more than %d headers before byte %d for one file", ErrCorrupt, maxSpecials, s.pos)
}

// block appends the next header block to e, and returns it. Where there is none
// any more it returns io.EOF, if there may be none.
func (s *scanner) block(e *entry) ([]byte, error) {
	about := len(e.blocks) > 0 // there are headers about what comes
	b, err := s.read(e, blockLen)
	if err == nil && allZero(b) {
		if b, err = s.read(e, blockLen); err == nil && !allZero(b) {
			return nil, fmt.Errorf("%w: a zero block before the end, at byte %d", ErrCorrupt, s.pos-2*blockLen)
		}
		err = io.EOF
	}
	if errors.Is(err, io.EOF) && about {
		return nil, fmt.Errorf("%w: the end at byte %d follows headers about a file", ErrCorrupt, s.pos)
	}
	if err != nil {
		return nil, err
	}
	if !s.dumps && !valid(b) {
		return nil, fmt.Errorf("%w: checksum of the header at byte %d", ErrCorrupt, s.pos-blockLen)
	}
	return b, nil
}

// special appends the body of a header about others to e, and returns it.
func (s *scanner) special(e *entry, n int64) ([]byte, error) {
	if n > maxSpecial {
		return nil, fmt.Errorf("%w: header of %d bytes before byte %d", ErrCorrupt, n, s.pos)
	}
	b, err := s.read(e, int(n+padding(n)))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}

// holes appends the blocks of holes of a sparse file to e.
func (s *scanner) holes(e *entry, kind byte) error {
	if kind != tar.TypeGNUSparse {
		return nil
	}
	more := e.blocks[e.last+extendedOff]
	for n := 0; more != 0; n++ {
		if n == maxHoles {
			return fmt.Errorf("%w: a sparse file with more than %d blocks of holes before byte %d", ErrCorrupt, maxHoles, s.pos)
		}
		b, err := s.special(e, blockLen)
		if err != nil {
			return err
		}
		more = b[moreExtendedOff]
	}
	return nil
}

// read appends the next n bytes to e and returns them. It returns io.EOF where
// there are none.
func (s *scanner) read(e *entry, n int) ([]byte, error) {
	at := len(e.blocks)
	e.blocks = append(e.blocks, make([]byte, n)...)
	k, err := io.ReadFull(s.r, e.blocks[at:])
	s.pos += int64(k)
	if err != nil && (!errors.Is(err, io.EOF) || k > 0) {
		return nil, fmt.Errorf("read tar header at byte %d: %w", s.pos, err)
	}
	return e.blocks[at:], err
}

// header returns the file's own header block.
func (e *entry) header() []byte { return e.blocks[e.last:][:blockLen] }

// regular reports whether e is a file with content.
func (e *entry) regular() bool {
	switch e.header()[typeOff] {
	case tar.TypeReg, 0, tar.TypeCont, tar.TypeGNUSparse:
		return true
	}
	return false
}

func special(kind byte) bool {
	switch kind {
	case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
		return true
	}
	return false
}

func headerOnly(kind byte) bool {
	switch kind {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return true
	}
	return false
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// sums returns the checksum of a header block: of bytes, and of bytes with a
// sign, as some old programs have it.
func sums(b []byte) (unsigned, signed int64) {
	unsigned, signed = checksumLen*' ', checksumLen*' '
	for i, c := range b {
		if i < checksumOff || i >= checksumOff+checksumLen {
			unsigned += int64(c)
			signed += int64(int8(c))
		}
	}
	return unsigned, signed
}

func valid(b []byte) bool {
	n, err := field(b[checksumOff:][:checksumLen])
	unsigned, signed := sums(b)
	return err == nil && (n == unsigned || n == signed)
}

// field parses a number of a header, which is not negative.
func field(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		return base256(b)
	}
	text := string(bytes.Trim(b, " \x00"))
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 8, 62)
	return int64(n), err
}

func base256(b []byte) (int64, error) {
	var p [16]byte
	copy(p[16-len(b):], b)
	p[16-len(b)] &^= 0x80
	hi, lo := binary.BigEndian.Uint64(p[:]), binary.BigEndian.Uint64(p[8:])
	if hi != 0 || lo > math.MaxInt64/2 {
		return 0, strconv.ErrRange
	}
	return int64(lo), nil
}

// pax is what matters here of pax headers.
type pax struct {
	size   int64 // of the file, -1 if they do not say
	sparse bool
}

// read takes note of the body of a header. What is wrong with it is for others
// to say.
func (x *pax) read(body []byte) {
	for len(body) > 0 {
		length, rest, ok := bytes.Cut(body, []byte(" "))
		n, err := strconv.Atoi(string(length))
		if !ok || err != nil || n <= len(length)+1 || n > len(body) {
			return
		}
		record := rest[:n-len(length)-1]
		if value, ok := bytes.CutPrefix(record, []byte("size=")); ok {
			if v, err := strconv.ParseUint(string(bytes.TrimSuffix(value, []byte("\n"))), 10, 62); err == nil {
				x.size = int64(v)
			}
		}
		x.sparse = x.sparse || bytes.HasPrefix(record, []byte("GNU.sparse."))
		body = body[n:]
	}
}
