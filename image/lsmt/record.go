// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"encoding/binary"
	"fmt"
)

// A record is one index entry: a run of sectors of the volume and where their
// bytes are. It has no pointers, so that the garbage collector never looks
// into an index of millions. Two little-endian words, durable:
//
//	word  bits    field    unit
//	at    0..49   lba      sectors; 2^50-1 marks padding
//	at    50..63  length   sectors
//	to    0..54   source   sectors into the file that tag selects
//	to    55      zeroed   reads as zeros, no data
//	to    56..63  tag      number of the source, only meaningful in memory
type record struct{ at, to uint64 }

const (
	recordSize = 16

	lbaBits    = 50
	sourceBits = 55
	lbaMask    = 1<<lbaBits - 1
	sourceMask = 1<<sourceBits - 1
	zeroedBit  = 1 << sourceBits
	tagShift   = 56

	// maxSectors is the longest run that a record can tell.
	maxSectors = 1<<14 - 1

	// firstSector is where data begins: after the header.
	firstSector = headerSize / SectorSize
)

// padding is a record that readers skip wherever it is.
var padding = record{at: lbaMask}

func newRecord(lba, n, source uint64) record {
	return record{at: lba | n<<lbaBits, to: source}
}

func newZeroed(lba, n, source uint64) record {
	return record{at: lba | n<<lbaBits, to: source | zeroedBit}
}

func (r record) lba() uint64     { return r.at & lbaMask }
func (r record) sectors() uint64 { return r.at >> lbaBits }
func (r record) end() uint64     { return r.lba() + r.sectors() }
func (r record) source() uint64  { return r.to & sourceMask }
func (r record) zeroed() bool    { return r.to&zeroedBit != 0 }
func (r record) tag() uint8      { return uint8(r.to >> tagShift) }
func (r record) isPadding() bool { return r.lba() == lbaMask }

// withTag returns r as a mapping into the source number tag.
func (r record) withTag(tag uint8) record {
	return record{r.at, r.to&(1<<tagShift-1) | uint64(tag)<<tagShift}
}

// clip returns the part of r that lies in [from, to), which must overlap it.
// A zeroed record keeps its source, as the reference has it.
func (r record) clip(from, to uint64) record {
	from, to = max(from, r.lba()), min(to, r.end())
	if !r.zeroed() {
		r.to += from - r.lba()
	}
	r.at = from | (to-from)<<lbaBits
	return r
}

// continues reports whether next is, in the volume and in the source, the
// continuation of r.
func (r record) continues(next record) bool {
	return r.end() == next.lba() && r.sourceEnd() == next.source() &&
		r.to>>sourceBits == next.to>>sourceBits
}

// sourceEnd returns the source sector after those that r takes.
func (r record) sourceEnd() uint64 {
	if r.zeroed() {
		return r.source()
	}
	return r.source() + r.sectors()
}

func getRecord(b []byte) record {
	return record{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

func appendRecord(b []byte, r record) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.at)
	return binary.LittleEndian.AppendUint64(b, r.to)
}

// check returns what is wrong with r as a mapping into a file whose data ends
// before sector limit, and the field that has it; "" when nothing is.
func (r record) check(limit uint64) (field, reason string) {
	if field, reason = r.checkLength(); field != "" {
		return field, reason
	}
	switch {
	case r.source() < firstSector:
		return "moffset", fmt.Sprintf("sector %d is in the header", r.source())
	case r.sourceEnd() > limit:
		return "moffset", fmt.Sprintf("sectors %d+%d are past the data's end at %d", r.source(), r.sectors(), limit)
	}
	return "", ""
}

// checkLength is check, whatever r points to.
func (r record) checkLength() (field, reason string) {
	switch {
	case r.sectors() == 0:
		return "length", "zero"
	case r.end() > 1<<lbaBits:
		return "length", fmt.Sprintf("sectors %d+%d leave the volume", r.lba(), r.sectors())
	}
	return "", ""
}

// A Mapping is one index record: where a run of sectors of the volume is.
type Mapping struct {
	LBA     uint64 // first sector in the volume
	Sectors uint64 // length of the run, at most 16383
	Source  uint64 // first sector in the source; of no meaning when Zeroed
	Zeroed  bool   // the run reads as zeros
	Tag     uint8  // number of the source; in a merged index 0 is the top layer
}

func (r record) mapping() Mapping {
	return Mapping{LBA: r.lba(), Sectors: r.sectors(), Source: r.source(), Zeroed: r.zeroed(), Tag: r.tag()}
}
