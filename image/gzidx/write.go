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
)

// packLevel is the level windows are compressed at. Level 9 makes an index 3 %
// smaller, and indexing takes twice as long (BenchmarkIndex).
const packLevel = 6

// A packer packs windows, one behind the other, as the index file has them.
type packer struct {
	windows bytes.Buffer
	z       *zlib.Writer
	err     error
}

func newPacker() *packer {
	p := new(packer)
	p.z, p.err = zlib.NewWriterLevel(&p.windows, packLevel)
	return p
}

// point packs the window of a pin and returns the point it is.
func (p *packer) point(from *pin) point {
	start := p.windows.Len()
	p.pack(&p.windows, from.window)
	en := (from.bit + 7) / 8
	return point{
		de: from.de, en: en, bits: uint8(en*8 - from.bit),
		win: headerSize + int64(start), winLen: uint32(p.windows.Len() - start),
	}
}

// pack appends b to w as a zlib stream.
func (p *packer) pack(w io.Writer, b []byte) {
	p.z.Reset(w)
	_, err := p.z.Write(b)
	p.err = errors.Join(p.err, err, p.z.Close())
}

// WriteIndex writes the index after Read has returned io.EOF, and returns its
// size in bytes. It fails with errors.ErrUnsupported where points are farther
// apart than MaxSpan, because nobody would read it.
func (z *Reader) WriteIndex(w io.Writer) (int64, error) {
	if !errors.Is(z.err, io.EOF) {
		return 0, fmt.Errorf("write gzip index before the end of the stream: %w", errors.Join(io.ErrUnexpectedEOF, z.err))
	}
	x := &index{list: z.points, header: header{info: Info{Size: z.pos(), CompressedSize: z.f.bitPos() / 8}}}
	if err := x.checkSpans(); err != nil {
		return 0, err
	}
	sums := make([]byte, 0, len(z.sums)*sumSize)
	for _, s := range z.sums {
		sums = binary.LittleEndian.AppendUint32(sums, s)
	}
	var entries bytes.Buffer
	z.pack.pack(&entries, marshalPoints(z.points))
	if z.pack.err != nil {
		return 0, fmt.Errorf("compress entries: %w", z.pack.err)
	}
	x.every = int32(min(z.span, 1<<30))
	x.points = int64(len(z.points))
	x.checks = checks{off: headerSize + int64(z.pack.windows.Len()), size: int64(len(sums)), crc: crc32.Checksum(sums, castagnoli)}
	x.entries = x.checks.off + x.checks.size
	x.fileSize = x.entries + int64(entries.Len())
	var n int64
	for _, part := range [][]byte{x.marshal(), z.pack.windows.Bytes(), sums, entries.Bytes()} {
		k, err := w.Write(part)
		n += int64(k)
		if err != nil {
			return n, fmt.Errorf("write gzip index: %w", err)
		}
	}
	return n, nil
}

// marshalPoints returns the entries of points.
func marshalPoints(points []point) []byte {
	b := make([]byte, 0, len(points)*entrySize)
	for _, p := range points {
		b = binary.LittleEndian.AppendUint64(b, uint64(p.de))
		b = binary.LittleEndian.AppendUint64(b, uint64(p.en))
		b = binary.LittleEndian.AppendUint64(b, uint64(p.win))
		b = append(b, p.bits)
		b = binary.LittleEndian.AppendUint32(b, p.winLen)
	}
	return b
}

// marshal returns the header of a file whose windows are packed.
func (h header) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	b[8], b[10], b[11] = 1, 1, packLevel
	binary.LittleEndian.PutUint32(b[13:], uint32(h.every))
	binary.LittleEndian.PutUint32(b[17:], windowSize)
	binary.LittleEndian.PutUint32(b[21:], entrySize)
	for off, v := range map[int]int64{
		25: h.points, 33: h.info.CompressedSize, 41: h.fileSize, 49: h.info.Size, 313: h.entries, 321: h.fileSize - h.entries,
	} {
		binary.LittleEndian.PutUint64(b[off:], uint64(v))
	}
	h.checks.marshal(b[reserve:])
	binary.LittleEndian.PutUint32(b[329:], rawCRC(b[:329]))
	return b
}
