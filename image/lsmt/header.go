// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// headerSize is what a header or trailer takes in a file; structSize of it is
// used, the rest is zero.
//
//	off  size  field
//	0    24    magic
//	24   4     size of the structure, 390; readers ignore it
//	28   4     flags
//	32   8     index_offset, bytes
//	40   8     index_size, records
//	48   8     virtual_size, bytes; 0 means that of the layer below
//	56   37    uuid, upper case text and a NUL
//	93   37    parent uuid
//	130  2     reserved
//	132  2     version and sub-version, 1 and 1; readers ignore them
//	134  256   user tag, not terminated when it is full
const (
	headerSize = 4096
	structSize = 390
	maxUserTag = 256
	uuidLen    = 36
)

const (
	offFlags        = 28
	offIndexOffset  = 32
	offIndexRecords = 40
	offVirtualSize  = 48
	offUUID         = 56
	offParentUUID   = 93
	offVersion      = 132
	offUserTag      = 134
)

// magic begins every header and trailer. Durable.
const magic = "LSMT\x00\x01\x02\x00\x65\x7e\x63\xd2\x94\x44\x08\x4c\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a"

// nilUUID is how a missing UUID is stored.
const nilUUID = "00000000-0000-0000-0000-000000000000"

// Flags say what kind of file a header or trailer belongs to. Durable.
type Flags uint32

// The bits of Flags that have a meaning; readers ignore the others.
const (
	FlagHeader Flags = 1 << 0 // a header, not a trailer
	FlagData   Flags = 1 << 1 // of a data file, not an index file
	FlagSealed Flags = 1 << 2 // of a layer that will not change
	FlagSparse Flags = 1 << 4 // data lies at its offset in the volume
)

// A Header is the first or, as the trailer, the last 4 KiB of a layer file.
type Header struct {
	Flags        Flags
	IndexOffset  int64 // bytes
	IndexRecords int64 // padding included
	VirtualSize  int64 // bytes; 0 means that of the layer below
	UUID         string
	ParentUUID   string
	UserTag      string // at most 256 bytes
}

// Detect reports whether head, the first 24 or more bytes of a file, begins a
// layer.
func Detect(head []byte) bool {
	return len(head) >= len(magic) && string(head[:len(magic)]) == magic
}

// parseHeader decodes the header or trailer b that lies at byte offset base.
func parseHeader(b []byte, base int64) (Header, error) {
	if len(b) < structSize {
		return Header{}, corrupt(base, "header", "only %d bytes long", len(b))
	}
	if !Detect(b) {
		return Header{}, corrupt(base, "magic", "not that of a layer")
	}
	le := binary.LittleEndian
	h := Header{
		Flags:        Flags(le.Uint32(b[offFlags:])),
		IndexOffset:  int64(le.Uint64(b[offIndexOffset:])),
		IndexRecords: int64(le.Uint64(b[offIndexRecords:])),
		VirtualSize:  int64(le.Uint64(b[offVirtualSize:])),
		UUID:         parseUUID(b[offUUID:][:uuidLen]),
		ParentUUID:   parseUUID(b[offParentUUID:][:uuidLen]),
		UserTag:      strings.TrimRight(string(b[offUserTag:][:maxUserTag]), "\x00"),
	}
	switch {
	case h.IndexOffset < 0:
		return Header{}, corrupt(base+offIndexOffset, "index_offset", "%d is too large", uint64(h.IndexOffset))
	case h.IndexRecords < 0:
		return Header{}, corrupt(base+offIndexRecords, "index_size", "%d is too large", uint64(h.IndexRecords))
	case h.VirtualSize < 0 || h.VirtualSize > maxVirtualSize:
		return Header{}, corrupt(base+offVirtualSize, "virtual_size", "%d is over 64 TiB", uint64(h.VirtualSize))
	case h.VirtualSize%SectorSize != 0:
		return Header{}, corrupt(base+offVirtualSize, "virtual_size", "%d is no multiple of %d", h.VirtualSize, SectorSize)
	}
	return h, nil
}

// marshal returns the headerSize bytes of h.
func (h Header) marshal() []byte {
	b := make([]byte, headerSize)
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[len(magic):], structSize)
	le.PutUint32(b[offFlags:], uint32(h.Flags))
	le.PutUint64(b[offIndexOffset:], uint64(h.IndexOffset))
	le.PutUint64(b[offIndexRecords:], uint64(h.IndexRecords))
	le.PutUint64(b[offVirtualSize:], uint64(h.VirtualSize))
	copy(b[offUUID:][:uuidLen], h.UUID)
	copy(b[offParentUUID:][:uuidLen], h.ParentUUID)
	b[offVersion], b[offVersion+1] = 1, 1
	copy(b[offUserTag:][:maxUserTag], h.UserTag)
	return b
}

// is reports whether, of the bits in mask, exactly those in want are set.
func (f Flags) is(want, mask Flags) bool { return f&mask == want }

// parseUUID returns the text of a stored UUID in upper case. A hostile one
// may be any bytes, so it is not taken for a UUID, only carried.
func parseUUID(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	if len(b) == 0 {
		return nilUUID
	}
	return upper(string(b))
}

// checkUUID returns the UUID s as it is stored: upper case, nilUUID for "".
func checkUUID(s string) (string, error) {
	if s == "" {
		return nilUUID, nil
	}
	if len(s) != uuidLen {
		return "", fmt.Errorf("uuid %q is not %d characters long", s, uuidLen)
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if !isHex(c) && (!dash || c != '-') {
			return "", fmt.Errorf("uuid %q: unexpected %q at %d", s, c, i)
		}
	}
	return upper(s), nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// upper is strings.ToUpper for ASCII alone: it keeps other bytes, where
// ToUpper would replace what is not UTF-8.
func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}
