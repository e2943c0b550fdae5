// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The record of a blob says which of its blocks are on disk. All integers are
// little-endian; everything here is durable.
//
//	offset  size  field
//	     0     8  magic "OBDCACHE"
//	     8     4  version, 1
//	    12     4  block size, bytes
//	    16     8  size of the blob, bytes
//	    24    32  SHA-256 of the blob: its key
//	    56     4  zero
//	    60     4  CRC-32C of bytes [0, 60)
//	    64   8·i  tag of block i, for i up to the last block ever recorded
//
// A tag of zero means that the block is not on disk. A tag that does not match
// the bytes in the data file means the same: a tag is written after the block
// with no flush between or after, and it is the tag, not an order of writes,
// that makes a torn block, a torn record, a lost write and a failing disk look
// alike: as a block that must be fetched.
const (
	recordMagic   = "OBDCACHE"
	recordVersion = 1
	headerSize    = 64
	tagSize       = 8
)

// header is the head of a record.
type header struct {
	blockSize uint32
	size      int64
	key       key
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h *header) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, recordMagic)
	binary.LittleEndian.PutUint32(b[8:], recordVersion)
	binary.LittleEndian.PutUint32(b[12:], h.blockSize)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.size))
	copy(b[24:56], h.key[:])
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// parseHeader reads the head of a record.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, fmt.Errorf("record header of %d bytes is short", len(b))
	}
	if string(b[:8]) != recordMagic {
		return header{}, fmt.Errorf("record magic is %q", b[:8])
	}
	if got, want := binary.LittleEndian.Uint32(b[60:]), crc32.Checksum(b[:60], castagnoli); got != want {
		return header{}, fmt.Errorf("record header has CRC %08x, its bytes have %08x", got, want)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != recordVersion {
		return header{}, fmt.Errorf("record version %d is not known", v)
	}
	h := header{
		blockSize: binary.LittleEndian.Uint32(b[12:]),
		size:      int64(binary.LittleEndian.Uint64(b[16:])),
		key:       key(b[24:56]),
	}
	if h.size <= 0 || h.size > maxBlobSize || h.blockSize == 0 || binary.LittleEndian.Uint32(b[56:]) != 0 {
		return header{}, fmt.Errorf("record header says blob of %d bytes in blocks of %d", h.size, h.blockSize)
	}
	return h, nil
}

// tagOffset returns where the tag of b lies in the record.
func tagOffset(b block) int64 { return headerSize + tagSize*int64(b) }

// tag returns the checksum of block b holding p, never zero. Two CRCs of
// independent polynomials make one of 64 bits at the speed of memory; 32 bits
// would let one lost write in four billion pass, and a power cut loses
// hundreds of thousands at once. The index keeps a block from being taken for
// its neighbour.
func tag(b block, p []byte) uint64 {
	const odd = 0x9e3779b97f4a7c15 // spreads small indexes over all bits
	sum := uint64(crc32.Checksum(p, castagnoli))<<32 | uint64(crc32.ChecksumIEEE(p))
	if t := sum ^ uint64(b)*odd; t != 0 {
		return t
	}
	return 1
}
