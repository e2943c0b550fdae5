// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/binary"
	"fmt"
)

// ParamsSize is the length of encoded [Params].
const ParamsSize = 76

const (
	typeBasic   = 1 << 0
	typeDiscard = 1 << 1
	typeDevT    = 1 << 2 // which the driver fills in

	attrReadOnly      = 1 << 0
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3

	sectorShift = 9
	pageShift   = 12

	// The most that one request can zero, in sectors of whole pages: the block
	// layer counts bytes in 32 bits.
	maxDiscard = (1<<32 - 1<<pageShift) >> sectorShift
)

// Params describes the disk.
//
//	off  size                              off  size
//	  0     4  length                       40     4  discard alignment
//	  4     4  kinds of parameters given    44     4  discard granularity
//	  8     4  attributes                   48     4  most sectors of a discard
//	 12     4  shifts: logical, physical    52     4  most sectors to zero
//	           block, best, least request   56     2  most ranges of a discard
//	 16     4  most sectors of a request    60     8  character device: major, minor
//	 24     8  sectors of the disk          68     8  block device: major, minor
type Params struct {
	Size       int64 // in bytes, of whole sectors
	MaxRequest int   // in bytes, of whole pages
	Writable   bool

	Major, Minor uint32 // of the disk; zero until it is started
}

// Encode puts p into b, which has room for ParamsSize bytes.
//
// A writable disk is said to have a cache, so that the kernel passes fsync on,
// and to take FUA, which saves a flush after the write.
func (p *Params) Encode(b []byte) {
	ne := binary.NativeEndian
	clear(b[:ParamsSize])
	types, attrs := uint32(typeBasic), uint32(attrReadOnly)
	if p.Writable {
		types, attrs = typeBasic|typeDiscard, attrVolatileCache|attrFUA
		ne.PutUint32(b[44:], 1<<pageShift)
		ne.PutUint32(b[48:], maxDiscard)
		ne.PutUint32(b[52:], maxDiscard)
		ne.PutUint16(b[56:], 1)
	}
	ne.PutUint32(b, ParamsSize)
	ne.PutUint32(b[4:], types)
	ne.PutUint32(b[8:], attrs)
	b[12], b[13], b[14], b[15] = sectorShift, pageShift, pageShift, pageShift
	ne.PutUint32(b[16:], uint32(p.MaxRequest>>sectorShift))
	ne.PutUint64(b[24:], uint64(p.Size>>sectorShift))
}

// DecodeParams reads what the kernel says of a disk.
func DecodeParams(b []byte) (Params, error) {
	if len(b) < ParamsSize {
		return Params{}, fmt.Errorf("parameters of %d bytes, want %d", len(b), ParamsSize)
	}
	ne := binary.NativeEndian
	types, sectors := ne.Uint32(b[4:]), ne.Uint64(b[24:])
	if types&typeBasic == 0 || sectors == 0 || sectors > 1<<(63-sectorShift)-1 {
		return Params{}, fmt.Errorf("parameters of kinds %#x: %d sectors", types, sectors)
	}
	p := Params{
		Size:       int64(sectors << sectorShift),
		MaxRequest: int(ne.Uint32(b[16:])) << sectorShift,
		Writable:   ne.Uint32(b[8:])&attrReadOnly == 0,
	}
	if types&typeDevT != 0 {
		p.Major, p.Minor = ne.Uint32(b[68:]), ne.Uint32(b[72:])
	}
	return p, nil
}
