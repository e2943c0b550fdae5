// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Our part of the header: where the checksums of the spans are. The reference
// ignores it.
const (
	reserve     = 57 // byte of the header
	reserveSize = 256

	checksMagic   = "spansums"
	checksVersion = 1
	sumSize       = 4
)

// checks tells where in the index file the checksums are, in bytes; all is
// zero if there are none.
type checks struct {
	off, size int64
	crc       uint32
}

// parse parses the reserved part b of header h.
func (c *checks) parse(b []byte, h header) error {
	if string(b[:8]) != checksMagic {
		return nil
	}
	if b[8] != checksVersion {
		return fmt.Errorf("checksums of gzip index of version %d: %w", b[8], errors.ErrUnsupported)
	}
	c.off = int64(binary.LittleEndian.Uint64(b[9:]))
	c.size = int64(binary.LittleEndian.Uint64(b[17:]))
	c.crc = binary.LittleEndian.Uint32(b[25:])
	if c.off < headerSize || c.off > h.entries || c.size > h.entries-c.off || c.size != h.points*sumSize {
		return corruptf(reserve+9, "%d bytes of checksums from byte %d on", c.size, c.off)
	}
	return nil
}

// marshal is the opposite of parse.
func (c *checks) marshal(b []byte) {
	copy(b, checksMagic)
	b[8] = checksVersion
	binary.LittleEndian.PutUint64(b[9:], uint64(c.off))
	binary.LittleEndian.PutUint64(b[17:], uint64(c.size))
	binary.LittleEndian.PutUint32(b[25:], c.crc)
}

// sums returns the checksums of n spans, nil if the index has none.
func (c *checks) sums(file []byte, n int) ([]uint32, error) {
	if c.off == 0 {
		return nil, nil
	}
	b := file[c.off : c.off+c.size]
	if got := crc32.Checksum(b, castagnoli); got != c.crc {
		return nil, corruptf(c.off, "CRC of checksums is %08x, computed %08x", c.crc, got)
	}
	sums := make([]uint32, n)
	for i := range sums {
		sums[i] = binary.LittleEndian.Uint32(b[i*sumSize:])
	}
	return sums, nil
}
