// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Durable constants of the format.
const (
	headerSize = 512 // bytes, of the header and of the trailer
	structSize = 96  // bytes of the header that carry fields

	flagHeader = 1 << 0 // a header, not a trailer
	flagData   = 1 << 1
	flagSealed = 1 << 2
	flagInfo   = 1 << 3 // the header knows where the index is
	flagDigest = 1 << 4 // digest and index CRC are present
	flagsKnown = flagHeader | flagData | flagSealed | flagInfo | flagDigest

	minBlockSize = 512
	maxBlockSize = 64 << 10
	crcSize      = 4 // bytes after each block, and of each index entry
	blockSeed    = 100007
)

const magic = "ZFile\x00\x01\x00tuji.yyf@Alibaba"

// Detect reports whether head, the first 24 or more bytes of a blob, starts a
// ZFile.
func Detect(head []byte) bool {
	return len(head) >= len(magic) && string(head[:len(magic)]) == magic
}

// A header holds the fields of a header or trailer that mean something. The
// rest may be anything: files in the field carry uninitialised memory there.
type header struct {
	flags       uint64 // known bits only
	indexOffset uint64
	blocks      uint64
	size        uint64 // uncompressed bytes
	indexCRC    uint32
	blockSize   uint32
	algorithm   Algorithm
	dict        bool
	dictSize    uint32
	checksums   bool // each block is followed by its CRC
}

// parseHeader decodes the header or trailer b, stored at byte off. It checks
// what b says of itself: magic, digest, block size and algorithm.
func parseHeader(b []byte, off int64) (header, error) {
	if len(b) < headerSize || !Detect(b) {
		return header{}, corruptf(off, "no ZFile magic")
	}
	le := binary.LittleEndian
	h := header{
		flags:       le.Uint64(b[32:]) & flagsKnown,
		indexOffset: le.Uint64(b[40:]),
		blocks:      le.Uint64(b[48:]),
		size:        le.Uint64(b[56:]),
		indexCRC:    le.Uint32(b[64:]),
		blockSize:   le.Uint32(b[72:]),
		algorithm:   Algorithm(b[76]),
		dict:        b[78] != 0,
		dictSize:    le.Uint32(b[84:]),
		checksums:   b[88] != 0,
	}
	if got, want := digest(b), le.Uint32(b[28:]); h.flags&flagDigest != 0 && got != want {
		return header{}, corruptf(off, "digest is %08x, computed %08x", want, got)
	}
	return h, h.check(off)
}

func (h *header) check(off int64) error {
	switch {
	case h.blockSize < minBlockSize || h.blockSize > maxBlockSize || h.blockSize&(h.blockSize-1) != 0:
		return corruptf(off+72, "block size %d is not a power of two from %d to %d", h.blockSize, minBlockSize, maxBlockSize)
	case h.algorithm != LZ4 && h.algorithm != Zstd:
		return fmt.Errorf("zfile compression %d at byte %d: %w", h.algorithm, off+76, errors.ErrUnsupported)
	case h.dict:
		return fmt.Errorf("zfile compressed with a dictionary at byte %d: %w", off+78, errors.ErrUnsupported)
	}
	return nil
}

// checkIndex holds what h says of the index against the size of the file, so
// that nothing is allocated or read on the word of a header alone.
func (h *header) checkIndex(off, fileSize int64) error {
	end := uint64(fileSize) - headerSize // the index ends here at the latest
	want := h.size / uint64(h.blockSize)
	if h.size%uint64(h.blockSize) != 0 {
		want++
	}
	switch {
	case h.size > 1<<62:
		return corruptf(off+56, "uncompressed size %d", h.size)
	case h.blocks != want:
		return corruptf(off+48, "%d blocks of %d bytes cannot hold %d bytes", h.blocks, h.blockSize, h.size)
	case h.indexOffset > end || uint64(h.dataOffset()) > h.indexOffset:
		return corruptf(off+40, "index at byte %d of a file of %d bytes", h.indexOffset, fileSize)
	case h.blocks > (end-h.indexOffset)/crcSize:
		return corruptf(off+48, "index of %d blocks at byte %d ends past the file's %d bytes", h.blocks, h.indexOffset, fileSize)
	}
	return nil
}

// dataOffset returns where the first block starts.
func (h *header) dataOffset() int64 { return headerSize + int64(h.dictSize) }

// indexLimit returns where the index ends.
func (h *header) indexLimit() int64 { return int64(h.indexOffset + h.blocks*crcSize) }

// minStored and maxStored bound the stored length of a block, CRC included.
func (h *header) minStored() int { return 1 + h.crcLen() }
func (h *header) maxStored() int { return h.algorithm.bound(int(h.blockSize)) + h.crcLen() }

func (h *header) crcLen() int {
	if h.checksums {
		return crcSize
	}
	return 0
}

// marshal returns h as stored, every other byte zero.
func (h *header) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint32(b[24:], structSize)
	le.PutUint64(b[32:], h.flags)
	le.PutUint64(b[40:], h.indexOffset)
	le.PutUint64(b[48:], h.blocks)
	le.PutUint64(b[56:], h.size)
	le.PutUint32(b[64:], h.indexCRC)
	le.PutUint32(b[72:], h.blockSize)
	b[76] = byte(h.algorithm)
	b[78] = flagByte(h.dict)
	le.PutUint32(b[84:], h.dictSize)
	b[88] = flagByte(h.checksums)
	if h.flags&flagDigest != 0 {
		le.PutUint32(b[28:], digest(b))
	}
	return b
}

func flagByte(set bool) byte {
	if set {
		return 1
	}
	return 0
}

// digest returns the checksum of the header b with its digest field zero.
func digest(b []byte) uint32 {
	var zero [4]byte
	return checksum(checksum(checksum(0, b[:28]), zero[:]), b[32:headerSize])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the format's CRC-32C: the state starts at seed and is not
// inverted at either end.
func checksum(seed uint32, p []byte) uint32 {
	return ^crc32.Update(^seed, castagnoli, p)
}
