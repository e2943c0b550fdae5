// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// OpenWritable opens a writable layer and replays its index.
//
// What a crash leaves is repaired. The records that a process which was killed
// had not written to the index yet are taken from its journal. Half a record at
// the end of the index is ignored, and so are records from the first one on
// that points past the end of the data, since Sync had not returned for them
// before a power cut.
func OpenWritable(data, index string, opts OpenOptions) (*Writable, error) {
	w, err := openWritable(data, index, opts)
	if err != nil {
		return nil, fmt.Errorf("open writable layer %s: %w", data, err)
	}
	return w, nil
}

func openWritable(data, index string, opts OpenOptions) (*Writable, error) {
	d, err := openData(data, os.O_RDWR, opts.Direct)
	if err != nil {
		return nil, err
	}
	x, err := os.OpenFile(index, os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	w := &Writable{data: d, index: x, indexEnd: headerSize}
	err = w.load()
	if err == nil {
		w.journal = &journal{name: JournalPath(index), uuid: w.header.UUID}
		err = w.loadJournal()
	}
	if err != nil {
		return nil, errors.Join(err, d.Close(), x.Close())
	}
	return w, nil
}

func (w *Writable) load() error {
	size, err := w.loadData()
	if err != nil {
		return err
	}
	st, err := w.index.Stat()
	if err != nil {
		return err
	}
	if w.sparse && st.Size() == 0 { // as the reference leaves it
		if err := w.loadHoles(size); err != nil {
			return err
		}
		return w.writeHeaders()
	}
	return w.loadIndex(st.Size(), size)
}

// loadJournal replays the journal of a process that was killed.
func (w *Writable) loadJournal() error {
	records, found, err := w.journal.load()
	if err != nil || !found && len(w.pending) == 0 {
		return err
	}
	for _, r := range records {
		w.extents.insert(r.withTag(0))
		w.pending = appendRecord(w.pending, r)
	}
	return w.journal.create(w.pending)
}

// loadData reads the data file's header and returns the file's size in bytes.
func (w *Writable) loadData() (size int64, err error) {
	st, err := w.data.Stat()
	if err != nil {
		return 0, err
	}
	w.header, err = headerOf(w.data, FlagHeader|FlagData, FlagHeader|FlagData)
	if err != nil {
		return 0, fmt.Errorf("read header of data file: %w", err)
	}
	w.sparse = w.header.Flags&FlagSparse != 0
	w.tail = (st.Size() + SectorSize - 1) / SectorSize * SectorSize
	return st.Size(), nil
}

// headerOf reads the header at the start of f.
func headerOf(f io.ReaderAt, want, mask Flags) (Header, error) {
	b := make([]byte, headerSize)
	if n, err := f.ReadAt(b, 0); err != nil {
		if errors.Is(err, io.EOF) {
			return Header{}, corrupt(int64(n), "header", "the file ends in it")
		}
		return Header{}, err
	}
	h, err := parseHeader(b, 0)
	if err != nil {
		return Header{}, err
	}
	if !h.Flags.is(want, mask) {
		return Header{}, corrupt(offFlags, "flags", "%#x, want %#x among %#x", h.Flags, want, mask)
	}
	return h, nil
}

// loadIndex replays an index file of size bytes over a data file of dataSize.
func (w *Writable) loadIndex(size, dataSize int64) error {
	h, err := headerOf(w.index, FlagHeader, FlagHeader|FlagData|FlagSealed)
	if err != nil {
		return fmt.Errorf("read header of index file: %w", err)
	}
	if h.IndexOffset != headerSize {
		return corrupt(offIndexOffset, "index_offset", "%d in an index file, want %d", h.IndexOffset, headerSize)
	}
	if !w.sparse {
		w.header = h
	}
	if size > headerSize+maxMerged*recordSize {
		return corrupt(size, "index_size", "more than %d records", maxMerged)
	}
	return w.replay(size-size%recordSize, uint64(dataSize/SectorSize))
}

// replay inserts the records up to byte offset end of the index file, or to
// the first that points past sector limit of the data.
func (w *Writable) replay(end int64, limit uint64) error {
	buf := make([]byte, min(max(end-headerSize, 0), indexChunk))
	for off := int64(headerSize); off < end; {
		b := buf[:min(end-off, indexChunk)]
		if _, err := w.index.ReadAt(b, off); err != nil {
			return fmt.Errorf("read index file at %d: %w", off, err)
		}
		for ; len(b) > 0; b, off = b[recordSize:], off+recordSize {
			whole, err := w.replayOne(getRecord(b), off, limit)
			if err != nil || !whole {
				return err
			}
			w.indexEnd = off + recordSize
		}
	}
	return nil
}

// replayOne inserts r, found at byte offset off. It reports false where the
// data that r points to never reached the disk.
func (w *Writable) replayOne(r record, off int64, limit uint64) (whole bool, err error) {
	if r.isPadding() {
		return true, nil
	}
	if field, reason := r.check(math.MaxInt64); field != "" {
		return false, corrupt(off, field, "%s", reason)
	}
	if r.sourceEnd() > limit {
		return false, nil
	}
	w.extents.insert(r.withTag(0))
	return true, nil
}

// loadHoles makes an index of where the sparse data file, size bytes long,
// has data: all that the reference keeps of one.
func (w *Writable) loadHoles(size int64) error {
	fd := int(w.data.Fd())
	for off := int64(headerSize); off < size; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for data from %d: %w", off, err)
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("look for a hole from %d: %w", start, err)
		}
		w.insertInPlace(max(start, headerSize)/SectorSize, end/SectorSize)
		off = end
	}
	return nil
}

// insertInPlace maps sectors [from, to) of a sparse data file to themselves.
func (w *Writable) insertInPlace(from, to int64) {
	for from < to {
		run := min(to-from, maxSectors)
		r := newRecord(uint64(from-firstSector), uint64(run), uint64(from))
		w.extents.insert(r)
		w.pending = appendRecord(w.pending, r)
		from += run
	}
}
