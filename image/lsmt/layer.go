// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Layer is an open sealed layer. It can be merged into a [Stack] or
// committed; to read it alone, merge it alone.
type Layer struct {
	file    fetcher.Blob // the layer file
	src     fetcher.Blob // what the index points into: the file, or a joint
	trailer Header
	index   index
}

// Open opens the sealed layer in src and reads its index. The layer owns src
// and closes it; src stays the caller's when Open fails. Where the layer is
// corrupt and src keeps copies of what it fetched, Open drops them and tries
// once more.
//
// Only the end of src is read, since a far blob has its two ends in different
// requests. The header says nothing that the trailer does not: of a file that
// grew, it is older.
func Open(ctx context.Context, src fetcher.Blob) (*Layer, error) {
	l, err := load(ctx, src)
	if errors.Is(err, ErrCorrupt) && fetcher.Drop(ctx, src, 0, src.Size()) == nil {
		return load(ctx, src)
	}
	return l, err
}

// load is Open without the second try.
func load(ctx context.Context, src fetcher.Blob) (*Layer, error) {
	trailer, err := readTrailer(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("read trailer: %w", err)
	}
	x, err := readIndex(ctx, src, trailer, oneSource)
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	return &Layer{file: src, src: src, trailer: trailer, index: x}, nil
}

// readTrailer reads the trailer, and checks where it says that the index is.
func readTrailer(ctx context.Context, src fetcher.Blob) (Header, error) {
	last := src.Size() - headerSize
	if last < headerSize {
		return Header{}, corrupt(src.Size(), "trailer", "a file of %d bytes has none", src.Size())
	}
	h, err := readHeader(ctx, src, last, FlagData|FlagSealed, FlagHeader|FlagData|FlagSealed)
	if err == nil {
		err = checkIndexBounds(h, last)
	}
	return h, err
}

// readHeader reads the header at byte offset off, of whose flags those in
// mask must equal want.
func readHeader(ctx context.Context, src fetcher.Blob, off int64, want, mask Flags) (Header, error) {
	b := make([]byte, headerSize)
	if err := readFull(ctx, src, b, off); err != nil {
		return Header{}, err
	}
	h, err := parseHeader(b, off)
	if err != nil {
		return Header{}, err
	}
	if !h.Flags.is(want, mask) {
		return Header{}, corrupt(off+offFlags, "flags", "%#x, want %#x among %#x", h.Flags, want, mask)
	}
	return h, nil
}

// checkIndexBounds checks that the index lies between the header and the
// trailer h, which is at byte offset last.
func checkIndexBounds(h Header, last int64) error {
	switch {
	case h.IndexOffset < headerSize || h.IndexOffset > last:
		return corrupt(last+offIndexOffset, "index_offset", "%d is outside [%d, %d]", h.IndexOffset, headerSize, last)
	case h.IndexRecords > (last-h.IndexOffset)/recordSize:
		return corrupt(last+offIndexRecords, "index_size", "%d records do not fit before the trailer", h.IndexRecords)
	case h.IndexRecords > maxLoaded:
		return corrupt(last+offIndexRecords, "index_size", "%d records are over the limit of %d", h.IndexRecords, maxLoaded)
	}
	return nil
}

// indexChunk is how much of an index is read at once (256 KiB): memory grows
// with what has really been read, not with what a trailer claims, and many
// layers are opened at the same time.
const indexChunk = 256 << 10

func readIndex(ctx context.Context, src fetcher.Blob, trailer Header, sources sources) (index, error) {
	off := trailer.IndexOffset
	end := off + trailer.IndexRecords*recordSize
	buf := make([]byte, min(end-off, indexChunk))
	x := make(index, 0, len(buf)/recordSize)
	for off < end {
		b := buf[:min(end-off, indexChunk)]
		if err := readFull(ctx, src, b, off); err != nil {
			return nil, err
		}
		var err error
		if x, err = appendSorted(x, b, off, uint64(trailer.IndexOffset/SectorSize), sources); err != nil {
			return nil, err
		}
		off += int64(len(b))
	}
	return x, nil
}

// sources says what the tags of a layer's records may be. It returns r as it
// is to be loaded; limit is the sector of the layer file where its data ends.
type sources func(r record, limit uint64) (_ record, field, reason string)

// oneSource is how the records of an ordinary layer are read: their tags mean
// nothing, all data is in the file.
func oneSource(r record, limit uint64) (_ record, field, reason string) {
	field, reason = r.check(limit)
	return r.withTag(0), field, reason
}

// appendSorted appends the records in b, found at byte offset off of a file
// whose data ends before sector limit. It drops padding.
func appendSorted(x index, b []byte, off int64, limit uint64, sources sources) (index, error) {
	for ; len(b) > 0; b, off = b[recordSize:], off+recordSize {
		r := getRecord(b)
		if r.isPadding() {
			continue
		}
		r, field, reason := sources(r, limit)
		if field != "" {
			return nil, corrupt(off, field, "%s", reason)
		}
		if len(x) > 0 && r.lba() < x[len(x)-1].end() {
			return nil, corrupt(off, "offset", "sector %d is not after the record before it", r.lba())
		}
		x = append(x, r)
	}
	return x, nil
}

// readFull fills p from byte offset off of src, or fails.
func readFull(ctx context.Context, src fetcher.Blob, p []byte, off int64) error {
	n, err := src.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// Header reads the header of the layer's file.
func (l *Layer) Header(ctx context.Context) (Header, error) {
	h, err := readHeader(ctx, l.file, 0, FlagHeader|FlagData, FlagHeader|FlagData)
	if err != nil {
		return Header{}, fmt.Errorf("read header: %w", err)
	}
	return h, nil
}

// Trailer returns the trailer of the layer's file.
func (l *Layer) Trailer() Header { return l.trailer }

// VirtualSize returns the size of the volume in bytes; 0 means that of the
// layer below.
func (l *Layer) VirtualSize() int64 { return l.trailer.VirtualSize }

// Mappings yields the layer's index in the order of the volume.
func (l *Layer) Mappings() iter.Seq[Mapping] { return l.index.mappings() }

// Close closes the layer's blob.
func (l *Layer) Close() error { return l.src.Close() }
