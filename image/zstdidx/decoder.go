// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
)

const (
	magicFrame = 0xfd2fb528
	magicSkip  = 0x184d2a50 // and the fifteen above

	// maxBlock bounds the content of a block, bytes (RFC 8878, 3.1.1.2.4).
	maxBlock = 128 << 10

	// maxWindow bounds how far back a match may lie, bytes, and with it what
	// memory a stream can ask for. It is what zstd makes and reads at most
	// without being forced.
	maxWindow = 128 << 20
)

// A frame is what its header says of it.
type frame struct {
	window   int   // bytes
	blockMax int   // bytes of content of a block
	size     int64 // bytes of content; -1 if it does not say
	checksum bool  // four bytes of checksum follow the last block
}

// A decoder takes a zstd stream apart step by step.
type decoder struct {
	r   *bufio.Reader
	pos int64 // bytes read

	frame   frame
	inside  bool  // a frame, of which the header was read
	first   bool  // no block of the frame was read yet
	content int64 // bytes of the frame so far
	hash    *xxhash.Digest

	tables tables
	reps   [3]int
	out    output

	small    [3]byte // header of a block, or its content that is to be repeated
	block    []byte  // margin, a block as stored, margin
	scratch  []byte  // literals, margin
	lits     []byte
	litCount int
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{
		r:       bufio.NewReaderSize(r, 256<<10),
		block:   make([]byte, margin+maxBlock+margin),
		scratch: make([]byte, maxBlock+margin),
	}
}

// reset begins with the stream r, of which size bytes of content are wanted.
func (d *decoder) reset(r io.Reader, size int) {
	d.r.Reset(r)
	d.pos = 0
	d.inside = false
	d.out = output{buf: make([]byte, 0, size+margin)}
}

// step reads the header of a frame, a frame to be skipped, or a block. The
// error is io.EOF where the stream ends between frames.
func (d *decoder) step() error {
	if d.inside {
		return d.decodeBlock()
	}
	return d.open()
}

// read fills p, which may not be all there is.
func (d *decoder) read(p []byte) error {
	n, err := io.ReadFull(d.r, p)
	d.pos += int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read zstd stream at byte %d: %w", d.pos, err)
	}
	return nil
}

// open reads the header of a frame.
func (d *decoder) open() error {
	if _, err := d.r.Peek(1); errors.Is(err, io.EOF) {
		return io.EOF
	}
	var b [14]byte
	if err := d.read(b[:4]); err != nil {
		return err
	}
	switch magic := binary.LittleEndian.Uint32(b[:]); {
	case magic&^15 == magicSkip:
		if err := d.read(b[:4]); err != nil {
			return err
		}
		return d.skip(int64(binary.LittleEndian.Uint32(b[:])))
	case magic != magicFrame:
		return malformed("no frame begins with %08x", magic)
	}
	if err := d.read(b[:1]); err != nil {
		return err
	}
	size := headerSize(b[0])
	if err := d.read(b[1:size]); err != nil {
		return err
	}
	f, err := parseHeader(b[:size])
	if err != nil {
		return err
	}
	d.begin(f)
	d.reps = [3]int{1, 4, 8}
	d.out.frame = len(d.out.buf)
	d.tables.reset()
	return nil
}

// begin goes into a frame.
func (d *decoder) begin(f frame) {
	d.frame = f
	d.inside, d.first, d.content = true, true, 0
}

func (d *decoder) skip(n int64) error {
	k, err := io.CopyN(io.Discard, d.r, n)
	d.pos += k
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("skip %d bytes of zstd stream: %w", n, err)
	}
	return nil
}

// headerSize returns how long the header of a frame is, without the magic, by
// its first byte.
func headerSize(b byte) int {
	n := 1 + [...]int{0, 1, 2, 4}[b&3] + [...]int{0, 2, 4, 8}[b>>6]
	if b&0x20 == 0 || b>>6 == 0 {
		n++ // window, or size of one byte
	}
	return n
}

// parseHeader parses the header of a frame, without the magic.
func parseHeader(b []byte) (f frame, err error) {
	flags := b[0]
	single := flags&0x20 != 0
	if flags&8 != 0 {
		return f, malformed("reserved bit of a frame header set")
	}
	f.checksum = flags&4 != 0
	b = b[1:]
	window := uint64(0)
	if !single {
		log := uint(b[0]>>3) + 10
		window = 1<<log + uint64(b[0]&7)<<(log-3)
		b = b[1:]
	}
	for dict := [...]int{0, 1, 2, 4}[flags&3]; dict > 0; dict-- {
		if b[0] != 0 {
			return f, fmt.Errorf("zstd frame with a dictionary: %w", errors.ErrUnsupported)
		}
		b = b[1:]
	}
	var wide [8]byte
	copy(wide[:], b)
	size := binary.LittleEndian.Uint64(wide[:])
	if len(b) == 2 {
		size += 256
	}
	if single {
		window = size
	}
	if window > maxWindow {
		return f, fmt.Errorf("zstd frame with a window of %d bytes, at most %d are handled: %w", window, maxWindow, errors.ErrUnsupported)
	}
	if f.size = int64(size); len(b) == 0 {
		f.size = -1
	} else if f.size < 0 {
		return f, malformed("frame of %d bytes", size)
	}
	f.window, f.blockMax = int(window), int(min(window, maxBlock))
	return f, nil
}

// decodeBlock reads a block, and the checksum behind the last.
func (d *decoder) decodeBlock() error {
	b := d.small[:3]
	if err := d.read(b); err != nil {
		return err
	}
	head := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	last, kind, size := head&1 != 0, head>>1&3, head>>3
	if size > d.frame.blockMax {
		return malformed("block of %d bytes, at most %d are possible in its frame", size, d.frame.blockMax)
	}
	from := len(d.out.buf)
	d.tables.begin()
	if err := d.decodeKind(kind, size); err != nil {
		return err
	}
	d.first = false
	p := d.out.buf[from:]
	if len(p) > d.frame.blockMax {
		return malformed("block with %d bytes of content, at most %d are possible in its frame", len(p), d.frame.blockMax)
	}
	d.content += int64(len(p))
	if d.hash != nil && d.frame.checksum {
		_, _ = d.hash.Write(p) // never fails
	}
	if last {
		return d.end()
	}
	return nil
}

func (d *decoder) decodeKind(kind, size int) error {
	switch kind {
	case 0:
		p, err := d.out.extend(size)
		if err != nil {
			return err
		}
		return d.read(p)
	case 1:
		b := d.small[:1]
		if err := d.read(b); err != nil {
			return err
		}
		p, err := d.out.extend(size)
		if err != nil {
			return err
		}
		fill(p, b[0])
		return nil
	case 2:
		if err := d.read(d.block[margin : margin+size]); err != nil {
			return err
		}
		at, err := d.literals(d.block, margin, margin+size)
		if err != nil {
			return err
		}
		return d.sequences(d.block, at, margin+size)
	}
	return malformed("block of reserved kind")
}

// end leaves a frame.
func (d *decoder) end() error {
	d.inside = false
	if d.frame.checksum {
		var b [4]byte
		if err := d.read(b[:]); err != nil {
			return err
		}
		if d.hash != nil {
			got, want := uint32(d.hash.Sum64()), binary.LittleEndian.Uint32(b[:])
			d.hash.Reset()
			if got != want {
				return malformed("checksum of a frame is %08x, its content's %08x", want, got)
			}
		}
	}
	if d.hash != nil && d.frame.size >= 0 && d.frame.size != d.content {
		return malformed("frame of %d bytes, its header says %d", d.content, d.frame.size)
	}
	return nil
}
