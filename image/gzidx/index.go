// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"

	"github.com/overlaybd-go/overlaybd/image/spans"
)

const (
	magic      = "ddgzidx\x00"
	headerSize = 333 // bytes
	entrySize  = 29

	// maxPacked is how long a packed window may be, in bytes: one that does
	// not compress, as zlib would store it, and some.
	maxPacked = 33 << 10

	// minPacked is what a point needs of an index file, in bytes: a packed
	// window of zeros alone takes twice as much. It bounds the memory for the
	// points of a hostile file.
	minPacked = 20

	// maxIndex bounds the index files that are read (bytes), which stay in
	// memory: at 1 % that of a layer of 25 GiB.
	maxIndex = 256 << 20
)

// MaxSpan is how far apart two points may be, in bytes of either side: what a
// read of one byte may cost. A block of gzip(1) holds 8 MiB at most, one of
// other encoders a few; who makes longer ones, without a way in, has made a
// file that is to be read whole.
const MaxSpan = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// rawCRC is the reference's checksum: CRC-32C without inversion.
func rawCRC(p []byte) uint32 { return ^crc32.Update(^uint32(0), castagnoli, p) }

// A point is a place where decoding can start.
type point struct {
	de     int64 // uncompressed bytes before it
	en     int64 // compressed bytes before it, including the one it begins in
	win    int64 // where in the index file its window lies, packed
	winLen uint32
	sum    uint32 // number of the first checksum behind it, if there are any
	bits   uint8  // how many of the bits before byte en are its own
}

// bitPos returns where in the gzip file it lies, in bits.
func (p point) bitPos() int64 { return p.en*8 - int64(p.bits) }

// start returns the first byte that decoding needs.
func (p point) start() int64 { return p.en - int64(p.bits+7)/8 }

// Info is what an index file says of the gzip file.
type Info = spans.Info

// A header is the parsed header of an index file. Names are those of the
// package comment.
type header struct {
	packed   bool
	every    int32 // span
	points   int64
	info     Info
	entries  int64 // index_start
	checks   checks
	fileSize int64
}

// An index is a parsed index file.
type index struct {
	header
	file []byte // all of it: windows are unpacked when they are needed
	list []point
	sums []byte // of the pieces of all spans; nil if the file has none
}

// Detect reports whether head, the first 8 bytes of a file or more, begins a
// gzip index.
func Detect(head []byte) bool { return bytes.HasPrefix(head, []byte(magic)) }

// ReadInfo returns what the header of an index of indexSize bytes says.
func ReadInfo(index io.ReaderAt, indexSize int64) (Info, error) {
	h, err := readIndexHeader(index, indexSize)
	return h.info, err
}

func readIndexHeader(index io.ReaderAt, indexSize int64) (header, error) {
	if indexSize < headerSize || indexSize > maxIndex {
		return header{}, corruptf(0, "index of %d bytes, want %d to %d", indexSize, headerSize, maxIndex)
	}
	var b [headerSize]byte
	if n, err := index.ReadAt(b[:], 0); n < len(b) {
		return header{}, fmt.Errorf("read header of gzip index: %w", err)
	}
	return parseHeader(b[:], indexSize)
}

// parseHeader parses the header b of an index of size bytes.
func parseHeader(b []byte, size int64) (header, error) {
	u64 := func(off int) int64 { return int64(binary.LittleEndian.Uint64(b[off:])) }
	u32 := func(off int) int32 { return int32(binary.LittleEndian.Uint32(b[off:])) }
	if !Detect(b) {
		return header{}, corruptf(0, "magic is %q", b[:8])
	}
	if got, want := rawCRC(b[:329]), binary.LittleEndian.Uint32(b[329:]); got != want {
		return header{}, corruptf(329, "CRC of header is %08x, computed %08x", want, got)
	}
	h := header{
		packed: b[10] == 1, every: u32(13), points: u64(25), info: Info{Size: u64(49), CompressedSize: u64(33)},
		entries: u64(313), fileSize: size,
	}
	switch {
	case b[8] != 1:
		return header{}, fmt.Errorf("gzip index of version %d.%d: %w", b[8], b[9], errors.ErrUnsupported)
	case b[10] > 1:
		return header{}, fmt.Errorf("windows of gzip index compressed by algorithm %d: %w", b[10], errors.ErrUnsupported)
	case u32(17) != windowSize:
		return header{}, corruptf(17, "window of %d bytes", u32(17))
	case u32(21) != entrySize:
		return header{}, corruptf(21, "entries of %d bytes", u32(21))
	case u64(41) != size:
		return header{}, corruptf(41, "size is %d, the file's is %d", u64(41), size)
	case h.entries < headerSize || h.entries > size || u64(321) != size-h.entries:
		return header{}, corruptf(313, "entries of %d bytes from byte %d to %d", u64(321), h.entries, size)
	case h.points < 1 || h.points > (size-headerSize)/minPacked:
		return header{}, corruptf(25, "%d points in %d bytes", h.points, size)
	}
	if err := h.checkInfo(); err != nil {
		return header{}, err
	}
	err := h.checks.parse(b[reserve:reserve+reserveSize], h)
	return h, err
}

// checkInfo checks the sizes: a gzip file has at least header and trailer, and
// DEFLATE makes 258 bytes of two bits at best.
func (h header) checkInfo() error {
	if n := h.info.CompressedSize; n < memberHeader+memberTrailer || n > 1<<50 {
		return corruptf(33, "size of gzip file is %d", n)
	}
	if n := h.info.Size; n < 0 || n/1032 > h.info.CompressedSize {
		return corruptf(49, "%d bytes uncompressed of %d", n, h.info.CompressedSize)
	}
	return nil
}

// readIndex reads a whole index file.
func readIndex(r io.ReaderAt, size int64) (*index, error) {
	h, err := readIndexHeader(r, size)
	if err != nil {
		return nil, err
	}
	x := &index{header: h}
	// It grows as it is read: size may be a lie.
	if x.file, err = io.ReadAll(io.NewSectionReader(r, 0, size)); err != nil {
		return nil, fmt.Errorf("read gzip index: %w", err)
	}
	if int64(len(x.file)) != size {
		return nil, fmt.Errorf("read gzip index: %w", io.ErrUnexpectedEOF)
	}
	area, err := x.unpackEntries()
	if err != nil {
		return nil, err
	}
	if err := x.parsePoints(area); err != nil {
		return nil, err
	}
	if err := x.numberSums(); err != nil {
		return nil, err
	}
	return x, nil
}

// unpackEntries returns the entries of all points.
func (x *index) unpackEntries() ([]byte, error) {
	area, want := x.file[x.entries:], int(x.points)*entrySize
	if x.packed {
		var err error
		if area, err = unpack(area, want); err != nil {
			return nil, corruptf(x.entries, "entries: %s", err)
		}
	}
	if len(area) != want {
		return nil, corruptf(x.entries, "%d bytes of entries, want %d", len(area), want)
	}
	return area, nil
}

// unpack returns the content of a zlib stream that must be n bytes long, and
// must fill p.
func unpack(p []byte, n int) ([]byte, error) {
	src := bytes.NewReader(p)
	z, err := zlib.NewReader(src)
	if err != nil {
		return nil, err
	}
	out := make([]byte, n)
	if _, err := io.ReadFull(z, out); err != nil {
		return nil, fmt.Errorf("less than %d bytes: %w", n, err)
	}
	var one [1]byte
	if k, err := z.Read(one[:]); k > 0 || !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("no end after %d bytes: %w", n, err)
	}
	if src.Len() > 0 {
		return nil, fmt.Errorf("%d bytes behind the end", src.Len())
	}
	return out, nil
}

// parsePoints parses the entries in area.
func (x *index) parsePoints(area []byte) error {
	x.list = make([]point, x.points)
	for i := range x.list {
		e := area[i*entrySize:]
		p := point{
			de: int64(binary.LittleEndian.Uint64(e)), en: int64(binary.LittleEndian.Uint64(e[8:])),
			win: int64(binary.LittleEndian.Uint64(e[16:])), bits: e[24], winLen: binary.LittleEndian.Uint32(e[25:]),
		}
		if err := x.checkPoint(i, p); err != nil {
			return corruptf(x.entries, "point %d: %s", i, err)
		}
		x.list[i] = p
	}
	return x.checkSpans()
}

// checkPoint checks p, which is to be point i. The reference can record two points in one place of the output, with
// an empty block between them.
func (x *index) checkPoint(i int, p point) error {
	switch {
	case p.de < 0 || p.de > x.info.Size:
		return fmt.Errorf("lies at %d of %d bytes", p.de, x.info.Size)
	case p.en < memberHeader || p.en > x.info.CompressedSize-memberTrailer || p.bits > 7:
		return fmt.Errorf("lies %d bits before byte %d of %d compressed", p.bits, p.en, x.info.CompressedSize)
	case p.win < headerSize || p.win > x.entries || int64(p.winLen) > x.entries-p.win:
		return fmt.Errorf("window of %d bytes at byte %d", p.winLen, p.win)
	case x.packed && p.winLen > maxPacked || !x.packed && p.winLen != windowSize:
		return fmt.Errorf("window of %d bytes", p.winLen)
	case i == 0 && p.de != 0:
		return fmt.Errorf("the first lies at byte %d, not 0", p.de)
	case i > 0 && (p.de < x.list[i-1].de || p.bitPos() <= x.list[i-1].bitPos()):
		return fmt.Errorf("at byte %d, %d compressed, it does not follow the one before", p.de, p.en)
	}
	return nil
}

// checkSpans bounds what reads from the points can cost.
func (x *index) checkSpans() error {
	for i := range x.list {
		start, end := x.Span(i)
		if from, to := x.Stored(i); end-start > MaxSpan || to-from > MaxSpan {
			return fmt.Errorf("gzip index: span %d of %d bytes, %d compressed, exceeds %d: %w", i, end-start, to-from, MaxSpan, errors.ErrUnsupported)
		}
	}
	return nil
}

// Size returns the number of uncompressed bytes.
func (x *index) Size() int64 { return x.info.Size }

// Find returns the span that holds byte off.
func (x *index) Find(off int64) int {
	return sort.Search(len(x.list), func(i int) bool { return x.list[i].de > off }) - 1
}

// Span returns where span i starts and ends, in uncompressed bytes.
func (x *index) Span(i int) (start, end int64) {
	if i+1 < len(x.list) {
		return x.list[i].de, x.list[i+1].de
	}
	return x.list[i].de, x.info.Size
}

// Stored returns where in the gzip file the bytes of span i start and end.
func (x *index) Stored(i int) (start, end int64) {
	if i+1 < len(x.list) {
		return x.list[i].start(), x.list[i+1].en
	}
	return x.list[i].start(), x.info.CompressedSize
}

// window returns the window of point i: windowSize bytes.
func (x *index) window(i int) ([]byte, error) {
	p := x.list[i]
	b := x.file[p.win : p.win+int64(p.winLen)]
	if !x.packed {
		return b, nil
	}
	w, err := unpack(b, windowSize)
	if err != nil {
		return nil, corruptf(p.win, "window %d: %s", i, err)
	}
	return w, nil
}
