// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Open reads the header and index of the ZFile src, and the trailer where the
// header does not know the index. On success the Reader owns src and closes it.
func Open(ctx context.Context, src fetcher.Blob) (*Reader, error) {
	return open(ctx, src, readInfo, nil)
}

// OpenEnd opens the ZFile src from its end alone, which of a far blob takes one
// request where its two ends take two.
//
// The header is not missed. It has no field that the trailer has not, and where
// the two contradict each other nothing is read that is not checked: the digest
// vouches for the trailer, a CRC for the index, whose blocks must fill the file
// from the header to the index, and CRCs of their own, if they have any, for the
// blocks.
//
// Readers of one content share the index, which is most of what they hold in
// memory, by way of memo, unless it is nil.
func OpenEnd(ctx context.Context, src fetcher.Blob, memo *sync.Map) (*Reader, error) {
	return open(ctx, src, readTrailer, memo)
}

func open(ctx context.Context, src fetcher.Blob, info func(context.Context, fetcher.Blob) (header, error), memo *sync.Map) (*Reader, error) {
	if src.Size() < 2*headerSize {
		return nil, corruptf(0, "%d bytes are less than a header and a trailer", src.Size())
	}
	h, err := info(ctx, src)
	if err != nil {
		return nil, err
	}
	x, err := sharedIndex(ctx, src, h, memo)
	if err != nil {
		return nil, err
	}
	r := &Reader{src: src, h: h, index: x, size: int64(h.size), helpers: newHelpers()}
	r.id.Store(readers.Add(1))
	return r, nil
}

// readInfo returns the header of src where that knows the index, which spares
// a remote blob one round trip, and the trailer otherwise.
func readInfo(ctx context.Context, src fetcher.Blob) (header, error) {
	h, err := readHeader(ctx, src, 0, flagHeader)
	if err != nil || h.flags&flagInfo != 0 {
		return h, err
	}
	return readTrailer(ctx, src)
}

func readTrailer(ctx context.Context, src fetcher.Blob) (header, error) {
	return readHeader(ctx, src, src.Size()-headerSize, flagData|flagSealed)
}

// readHeader reads the header or trailer at byte off, whose kind the flags
// must tell.
func readHeader(ctx context.Context, src fetcher.Blob, off int64, kind uint64) (h header, err error) {
	var b [headerSize]byte
	read := func() error {
		if err := readFull(ctx, src, b[:], off); err != nil {
			return fmt.Errorf("read zfile header at byte %d: %w", off, err)
		}
		if h, err = parseHeader(b[:], off); err != nil {
			return err
		}
		if h.flags&(flagHeader|kind) != kind {
			return corruptf(off+32, "flags %#x of a header or trailer, want %#x", h.flags, kind)
		}
		if kind == flagHeader && h.flags&flagInfo == 0 {
			return nil // the trailer's business
		}
		return h.checkIndex(off, src.Size())
	}
	err = heal(ctx, src, off, headerSize, read(), read)
	return h, err
}

// readTable reads and checks the entries, from block first on, of the index that
// h tells of.
func readTable(ctx context.Context, src fetcher.Blob, h header, first int64) (t *table, err error) {
	read := func() error {
		t, err = tryTable(ctx, src, h, first)
		return err
	}
	off := int64(h.indexOffset) + first*crcSize
	if err := heal(ctx, src, off, h.indexLimit()-off, read(), read); err != nil {
		return nil, err
	}
	return t, nil
}

func tryTable(ctx context.Context, src fetcher.Blob, h header, first int64) (*table, error) {
	start := h.dataOffset()
	if first > 0 {
		start = 0 // as long as it is not known
	}
	t := newTable(first, start, h.maxStored())
	crc, err := t.read(ctx, src, h)
	switch {
	case err != nil:
		return nil, err
	case first > 0:
		return t, t.align(h)
	case h.flags&flagDigest != 0 && crc != h.indexCRC:
		return nil, corruptf(int64(h.indexOffset), "CRC of index is %08x, computed %08x", h.indexCRC, crc)
	case t.end != int64(h.indexOffset):
		return nil, corruptf(int64(h.indexOffset), "blocks end at byte %d, index starts at %d", t.end, h.indexOffset)
	}
	return t, nil
}

// read adds the entries from block t.first to the last, and returns their CRC.
func (t *table) read(ctx context.Context, src fetcher.Blob, h header) (crc uint32, err error) {
	off, end := int64(h.indexOffset)+t.first*crcSize, h.indexLimit()
	r, err := fetcher.ReadRange(ctx, src, off, end-off)
	if err != nil {
		return 0, fmt.Errorf("read zfile index at byte %d: %w", off, err)
	}
	defer r.Close()
	t.grow(int(min((end-off)/crcSize, believed)))
	buf := lend(int(min(end-off, indexChunk)))
	defer buf.give()
	for off < end {
		p := buf.b[:min(int64(len(buf.b)), end-off)]
		if _, err := io.ReadFull(r, p); err != nil {
			return 0, fmt.Errorf("read zfile index at byte %d: %w", off, noEOF(err))
		}
		crc = checksum(crc, p)
		if err := t.parse(p, off, h); err != nil {
			return 0, err
		}
		off += int64(len(p))
	}
	return crc, nil
}

// align moves the blocks of t to where they are if the last ends at the index.
func (t *table) align(h header) error {
	start := int64(h.indexOffset) - t.end
	least := h.dataOffset() + t.first*int64(h.minStored())
	most := h.dataOffset() + t.first*int64(h.maxStored())
	if start < least || start > most {
		return corruptf(int64(h.indexOffset)+t.first*crcSize, "block %d would start at byte %d, not from %d to %d", t.first, start, least, most)
	}
	t.move(start)
	return nil
}

// believed is for how many blocks room is made on the word of a trailer (10 MB):
// making room bit by bit takes five times as much.
const believed = 4 << 20

// indexChunk is how much of an index is read at once (256 KiB): many files are
// opened at the same time.
const indexChunk = 256 << 10

// parse adds the entries p, stored at byte off.
func (t *table) parse(p []byte, off int64, h header) error {
	least, most := uint32(h.minStored()), uint32(h.maxStored())
	t.grow(len(p) / crcSize)
	for i := 0; i < len(p); i += crcSize {
		n := binary.LittleEndian.Uint32(p[i:])
		if n < least || n > most || uint64(t.end)+uint64(n) > h.indexOffset {
			return corruptf(off+int64(i), "block %d is %d bytes long from byte %d", t.first+int64(len(t.deltas)), n, t.end)
		}
		t.add(int(n))
	}
	return nil
}

// heal answers the outcome err of a first attempt to read bytes [off, off+n)
// of src. If they are corrupt the fault may be in a copy kept by a cache, so
// the copy is dropped and the bytes are read again.
func heal(ctx context.Context, src fetcher.Blob, off, n int64, err error, again func() error) error {
	if !errors.Is(err, ErrCorrupt) {
		return err
	}
	if derr := fetcher.Drop(ctx, src, off, n); derr != nil && !errors.Is(derr, errors.ErrUnsupported) {
		return errors.Join(err, fmt.Errorf("drop cached bytes %d to %d: %w", off, off+n, derr))
	}
	return again()
}

// readFull reads all of p; the end of the blob is not expected within.
func readFull(ctx context.Context, src fetcher.Blob, p []byte, off int64) error {
	n, err := src.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	return noEOF(err)
}

// noEOF returns the error of a read that came short for reason err, which the
// end of a file is not.
func noEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
