// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// Flags of a gzip header (RFC 1952).
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagsUnknown  = 0xe0
)

const (
	memberHeader  = 10 // bytes, without what flags add
	memberTrailer = 8
)

// A frame reads what is around the DEFLATE data of a gzip member.
type frame struct {
	in  *input
	crc uint32 // of the header so far
}

// bytes reads all of p; the input must be aligned.
func (f *frame) bytes(p []byte) error {
	for k := range p {
		b, err := f.in.byte()
		if errors.Is(err, io.EOF) {
			return errTruncated
		}
		if err != nil {
			return err
		}
		p[k] = b
	}
	f.crc = crc32.Update(f.crc, crc32.IEEETable, p)
	return nil
}

// skipString reads up to a zero byte.
func (f *frame) skipString() error {
	for {
		var b [1]byte
		if err := f.bytes(b[:]); err != nil || b[0] == 0 {
			return err
		}
	}
}

func (f *frame) skipExtra() error {
	var size [2]byte
	if err := f.bytes(size[:]); err != nil {
		return err
	}
	for n := binary.LittleEndian.Uint16(size[:]); n > 0; n-- {
		var b [1]byte
		if err := f.bytes(b[:]); err != nil {
			return err
		}
	}
	return nil
}

// readHeader reads a member's header.
func readHeader(in *input) error {
	f := &frame{in: in}
	var h [memberHeader]byte
	if err := f.bytes(h[:]); err != nil {
		return err
	}
	return f.rest(h)
}

// rest reads what follows the fixed part h of a member's header.
func (f *frame) rest(h [memberHeader]byte) error {
	flags := h[3]
	switch {
	case h[0] != 0x1f || h[1] != 0x8b:
		return errMagic
	case h[2] != 8:
		return errMethod
	case flags&flagsUnknown != 0:
		return errFlags
	}
	if flags&flagExtra != 0 {
		if err := f.skipExtra(); err != nil {
			return err
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 {
			continue
		}
		if err := f.skipString(); err != nil {
			return err
		}
	}
	if flags&flagHeaderCRC == 0 {
		return nil
	}
	want := uint16(f.crc)
	var crc [2]byte
	if err := f.bytes(crc[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(crc[:]) != want {
		return errHeaderCRC
	}
	return nil
}

// readTrailer reads what follows the last block of a member: the CRC of its
// content, and the size modulo 1<<32.
func readTrailer(in *input) (crc, size uint32, err error) {
	if err := in.align(); err != nil {
		return 0, 0, err
	}
	var t [memberTrailer]byte
	if err := (&frame{in: in}).bytes(t[:]); err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint32(t[:]), binary.LittleEndian.Uint32(t[4:]), nil
}

// nextMember reads the header of the next member, or returns io.EOF behind the
// last. As gzip(1) does, it puts up with zeros there, which tapes and block
// devices leave; anything else is an error, as it is for compress/gzip.
func nextMember(in *input) error {
	first, err := in.byte()
	if err != nil {
		return err
	}
	if first == 0 {
		return skipZeros(in)
	}
	if first != 0x1f {
		return errGarbage
	}
	in.pos-- // which is still there
	if err := readHeader(in); !errors.Is(err, errMagic) {
		return err
	}
	return errGarbage
}

// skipZeros returns io.EOF if only zeros follow.
func skipZeros(in *input) error {
	for {
		b, err := in.byte()
		if err != nil {
			return err
		}
		if b != 0 {
			return errGarbage
		}
	}
}
