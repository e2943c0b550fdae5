// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sort"

	"github.com/overlaybd-go/overlaybd/image/spans"
)

const (
	magic      = "zstdidx\x00"
	version    = 1
	headSize   = 64
	recordSize = 20
	sumSize    = 4
)

// pieceSize is how much content of a span a checksum is for, bytes; durable. It
// is half of the largest block, of which all comes out at once.
const pieceSize = 64 << 10

// pieces returns how many pieces n bytes of a span have.
func pieces(n int64) int64 { return (n + pieceSize - 1) / pieceSize }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Info is what an index says of its zstd file.
type Info = spans.Info

// A span is a piece of content that is decoded as one.
type span struct {
	start  int64 // of the content, bytes
	size   int64 // bytes of content
	pos    int64 // in the zstd file
	stored int64 // bytes of the zstd file
	sum    int64 // where its checksums begin in the index's, bytes
	state  int   // bytes of state, 0 if the span begins with a frame
	at     int64 // of the state in the index's states
}

// An index is an index file.
type index struct {
	Info
	spans  []span
	sums   []byte
	states []byte
}

// Detect reports whether head, of at least 8 bytes, begins an index file.
func Detect(head []byte) bool {
	return len(head) >= len(magic) && string(head[:len(magic)]) == magic
}

// marshal returns the index file.
func (x *index) marshal() []byte {
	b := make([]byte, headSize, headSize+len(x.spans)*recordSize+len(x.sums)+len(x.states))
	for _, s := range x.spans {
		b = binary.LittleEndian.AppendUint64(b, uint64(s.pos))
		b = binary.LittleEndian.AppendUint32(b, uint32(s.stored))
		b = binary.LittleEndian.AppendUint32(b, uint32(s.size))
		b = binary.LittleEndian.AppendUint32(b, uint32(s.state))
	}
	b = append(b, x.sums...)
	b = append(b, x.states...)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(x.spans)))
	binary.LittleEndian.PutUint64(b[16:], uint64(x.CompressedSize))
	binary.LittleEndian.PutUint64(b[24:], uint64(x.Info.Size))
	binary.LittleEndian.PutUint64(b[32:], uint64(len(b)))
	binary.LittleEndian.PutUint32(b[56:], crc32.Checksum(b[headSize:], castagnoli))
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// ReadInfo returns what the index file of indexSize bytes says of its zstd
// file. It reads the header alone.
func ReadInfo(file io.ReaderAt, indexSize int64) (Info, error) {
	h, err := readHead(file, indexSize)
	return h.Info, err
}

// A head is what the header of an index file says.
type head struct {
	Info
	spans int
	crc   uint32 // of all that follows
}

func readHead(file io.ReaderAt, size int64) (h head, err error) {
	if size < headSize {
		return h, malformed("index of %d bytes, its header has %d", size, headSize)
	}
	var b [headSize]byte
	if n, err := file.ReadAt(b[:], 0); n < len(b) {
		return h, fmt.Errorf("read header of zstd index: %w", err)
	}
	if !Detect(b[:]) {
		return h, malformed("index with magic %q", b[:8])
	}
	if got, want := crc32.Checksum(b[:60], castagnoli), binary.LittleEndian.Uint32(b[60:]); got != want {
		return h, malformed("CRC of the index's header is %08x, computed %08x", want, got)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return h, malformed("index of version %d, want %d", v, version)
	}
	h.spans = int(binary.LittleEndian.Uint32(b[12:]))
	h.CompressedSize = int64(binary.LittleEndian.Uint64(b[16:]))
	h.Size = int64(binary.LittleEndian.Uint64(b[24:]))
	h.crc = binary.LittleEndian.Uint32(b[56:])
	switch said := int64(binary.LittleEndian.Uint64(b[32:])); {
	case said != size:
		return h, malformed("index of %d bytes, it says %d", size, said)
	case int64(h.spans) > (size-headSize)/recordSize:
		return h, malformed("index of %d bytes with %d spans", size, h.spans)
	case h.CompressedSize < 0 || h.Size < 0 || h.Size > int64(h.spans)*maxSpan:
		return h, malformed("index of %d spans for %d bytes in %d", h.spans, h.Size, h.CompressedSize)
	}
	return h, nil
}

// readIndex reads and checks an index file, but for the states.
func readIndex(file io.ReaderAt, size int64) (*index, error) {
	h, err := readHead(file, size)
	if err != nil {
		return nil, err
	}
	// Memory is taken as bytes come, and not on the word of a size.
	b, err := io.ReadAll(io.NewSectionReader(file, headSize, size-headSize))
	if err != nil {
		return nil, fmt.Errorf("read zstd index: %w", err)
	}
	if int64(len(b)) != size-headSize {
		return nil, fmt.Errorf("read zstd index: %w", io.ErrUnexpectedEOF)
	}
	if got := crc32.Checksum(b, castagnoli); got != h.crc {
		return nil, malformed("CRC of the index is %08x, computed %08x", h.crc, got)
	}
	x := &index{Info: h.Info, spans: make([]span, h.spans)}
	return x, x.parse(b)
}

// parse parses what follows the header.
func (x *index) parse(b []byte) error {
	records, rest := b[:len(x.spans)*recordSize], b[len(x.spans)*recordSize:]
	var start, sum, at int64 // of the next span
	for i := range x.spans {
		r := records[i*recordSize:]
		s := span{
			start:  start,
			pos:    int64(binary.LittleEndian.Uint64(r)),
			stored: int64(binary.LittleEndian.Uint32(r[8:])),
			size:   int64(binary.LittleEndian.Uint32(r[12:])),
			sum:    sum,
			state:  int(binary.LittleEndian.Uint32(r[16:])),
			at:     at,
		}
		start, sum, at = start+s.size, sum+pieces(s.size)*sumSize, at+int64(s.state)
		if err := x.check(i, s); err != nil {
			return err
		}
		if sum+at > int64(len(rest)) {
			return malformed("span %d with %d bytes of checksums and state before its end, there are %d", i, sum+at, len(rest))
		}
		x.spans[i] = s
	}
	if start != x.Info.Size || sum+at != int64(len(rest)) {
		return malformed("spans of %d bytes, %d of checksums and state, want %d and %d", start, sum+at, x.Info.Size, len(rest))
	}
	x.sums, x.states = rest[:sum], rest[sum:]
	return nil
}

// check checks s, which is to be span i.
func (x *index) check(i int, s span) error {
	end := int64(0) // of the span before
	if i > 0 {
		_, end = x.Stored(i - 1)
	}
	switch {
	case s.size == 0 || s.size > maxSpan || s.stored == 0 || s.stored > maxStored:
		return malformed("span %d of %d bytes in %d", i, s.size, s.stored)
	case s.pos < end || s.pos > x.CompressedSize-s.stored:
		return malformed("span %d at byte %d of %d, after one that ends at %d", i, s.pos, x.CompressedSize, end)
	}
	return nil
}

// checkPiece checks the bytes p of span i, which begin at byte off of it.
func (x *index) checkPiece(i, off int, p []byte) error {
	at := x.spans[i].sum + int64(off/pieceSize*sumSize)
	want := binary.LittleEndian.Uint32(x.sums[at:])
	if got := crc32.Checksum(p, castagnoli); got != want {
		return malformed("CRC of content from byte %d of the span on is %08x, index says %08x", off, got, want)
	}
	return nil
}

// appendSums appends the checksums of a span's content.
func appendSums(sums, content []byte) []byte {
	for p := range slices.Chunk(content, pieceSize) {
		sums = binary.LittleEndian.AppendUint32(sums, crc32.Checksum(p, castagnoli))
	}
	return sums
}

// Size returns the number of bytes of content.
func (x *index) Size() int64 { return x.Info.Size }

// Find returns the span that holds byte off, which is not beyond the content.
func (x *index) Find(off int64) int {
	return sort.Search(len(x.spans), func(i int) bool { return x.spans[i].start > off }) - 1
}

// Span returns where span i starts and ends in the content.
func (x *index) Span(i int) (start, end int64) {
	s := &x.spans[i]
	return s.start, s.start + s.size
}

// Stored returns where span i starts and ends in the zstd file.
func (x *index) Stored(i int) (from, to int64) {
	s := &x.spans[i]
	return s.pos, s.pos + s.stored
}
