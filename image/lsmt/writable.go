// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A Writable is the topmost layer of a disk while it is being written.
//
// A write lands in the data file first, its record in memory next; records
// reach the index file at the next Sync, after the data they point to. So the
// index never points at bytes that a power cut can take away, and what Sync
// acknowledged is there. Until then a journal keeps the records, so that no
// write that has returned is lost when the process is killed. It is safe for
// concurrent use.
type Writable struct {
	data   *dataFile
	index  *os.File
	header Header // virtual size and UUIDs; of the index file when append-only
	sparse bool

	journal *journal

	mu      sync.RWMutex // guards what follows; never held across I/O
	extents extents
	tail    int64  // where the next append goes, a byte offset of the data file
	pending []byte // records that are not in the index file yet
	closed  bool

	syncing  sync.Mutex // one Sync at a time; taken before mu
	indexEnd int64      // where the next records go in the index file; guarded by syncing
}

// maxPending is how many bytes of records may wait for a Sync: 65,536 of them.
const maxPending = 1 << 20

// CreateOptions describe a new writable layer.
type CreateOptions struct {
	VirtualSize int64 // bytes; 0 takes the size of what lies below
	UUID        string
	ParentUUID  string

	// Sparse puts data at its offset in the volume, so that rewriting takes no
	// space. It needs a VirtualSize only when nothing lies below.
	Sparse bool

	// Direct keeps the data file out of the page cache.
	Direct bool
}

// OpenOptions say how to open a writable layer.
type OpenOptions struct {
	Direct bool // keep the data file out of the page cache
}

// Create makes a writable layer of two new files. Neither is left behind when
// it fails.
func Create(data, index string, opts CreateOptions) (*Writable, error) {
	w, err := create(data, index, opts)
	if err != nil {
		return nil, fmt.Errorf("create writable layer %s: %w", data, err)
	}
	return w, nil
}

func create(data, index string, opts CreateOptions) (w *Writable, err error) {
	h, err := newHeader(opts)
	if err != nil {
		return nil, err
	}
	d, err := openData(data, os.O_RDWR|os.O_CREATE|os.O_EXCL, opts.Direct)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(), os.Remove(data))
		}
	}()
	x, err := os.OpenFile(index, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	w = &Writable{
		data: d, index: x, header: h, sparse: opts.Sparse, tail: headerSize, indexEnd: headerSize,
		journal: &journal{name: JournalPath(index), uuid: h.UUID},
	}
	err = w.journal.clear() // of a layer that had the name
	if err == nil {
		err = w.format()
	}
	if err != nil {
		return nil, errors.Join(err, x.Close(), os.Remove(index))
	}
	return w, nil
}

func newHeader(opts CreateOptions) (Header, error) {
	uuid, err := checkUUID(opts.UUID)
	if err != nil {
		return Header{}, err
	}
	parent, err := checkUUID(opts.ParentUUID)
	if err != nil {
		return Header{}, err
	}
	if err := checkSize(opts.VirtualSize); err != nil {
		return Header{}, err
	}
	return Header{VirtualSize: opts.VirtualSize, UUID: uuid, ParentUUID: parent}, nil
}

func checkSize(n int64) error {
	if n < 0 || n > maxVirtualSize || n%SectorSize != 0 {
		return fmt.Errorf("virtual size %d is not a multiple of %d up to 64 TiB", n, SectorSize)
	}
	return nil
}

// format writes both headers and makes the two files durable.
func (w *Writable) format() error {
	if err := w.writeHeaders(); err != nil {
		return err
	}
	if err := errors.Join(w.data.Sync(), w.index.Sync()); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(w.data.Name())), syncDir(filepath.Dir(w.index.Name())))
}

// writeHeaders writes the headers of both files, and gives a sparse data file
// its length.
func (w *Writable) writeHeaders() error {
	h := w.header
	h.Flags = FlagHeader | FlagData
	if w.sparse {
		h.Flags |= FlagSparse
		if err := w.data.Truncate(headerSize + h.VirtualSize); err != nil {
			return err
		}
	}
	if _, err := w.data.WriteAt(h.marshal(), 0); err != nil {
		return err
	}
	h.Flags = FlagHeader
	h.IndexOffset = headerSize
	_, err := w.index.WriteAt(h.marshal(), 0)
	return err
}

// inherit gives a layer of no size the size of the volume below it.
func (w *Writable) inherit(size int64) error {
	if w.header.VirtualSize != 0 {
		return nil
	}
	if size == 0 {
		return errors.New("neither the writable layer nor a layer below has a size")
	}
	w.header.VirtualSize = size
	if err := w.writeHeaders(); err != nil {
		return err
	}
	return errors.Join(datasync(w.data.File), datasync(w.index))
}

// write stores p at byte offset off.
func (w *Writable) write(p []byte, off int64) error {
	at, err := w.reserve(int64(len(p)), off)
	if err != nil {
		return err
	}
	if _, err := w.data.WriteAt(p, at); err != nil {
		return err
	}
	lba, n, source := uint64(off)/SectorSize, uint64(len(p))/SectorSize, uint64(at)/SectorSize
	return w.record(func(yield func(record)) {
		for n > 0 {
			run := min(n, maxSectors)
			yield(newRecord(lba, run, source))
			lba, source, n = lba+run, source+run, n-run
		}
	})
}

// reserve returns where n bytes of the volume's offset off go in the data
// file.
func (w *Writable) reserve(n, off int64) (at int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, fs.ErrClosed
	}
	if w.sparse {
		return headerSize + off, nil
	}
	at = w.tail
	w.tail += n
	return at, nil
}

// discard makes n bytes at off read as zeros.
func (w *Writable) discard(off, n int64) error {
	lba, end := uint64(off)/SectorSize, uint64(off+n)/SectorSize
	err := w.record(func(yield func(record)) {
		source := uint64(firstSector) // any sector that exists
		for lba < end {
			run := min(end-lba, maxSectors)
			yield(newZeroed(lba, run, source))
			lba += run
		}
	})
	if err != nil || !w.sparse {
		return err
	}
	return w.punch(headerSize+off, n)
}

// punch frees the space of a discarded range. Where the file system cannot,
// the record alone makes it read as zeros.
func (w *Writable) punch(off, n int64) error {
	err := unix.Fallocate(int(w.data.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// record inserts the records that each yields. A sparse layer rewriting a
// sector in place needs no new record.
func (w *Writable) record(each func(yield func(record))) error {
	full, err := w.insert(each)
	if full && err == nil {
		err = w.sync(context.Background())
	}
	return err
}

// insert reports whether many records are pending.
func (w *Writable) insert(each func(yield func(record))) (full bool, err error) {
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return false, fs.ErrClosed
	}
	before := len(w.pending)
	each(func(r record) {
		if w.sparse && w.maps(r) {
			return
		}
		w.extents.insert(r)
		w.pending = appendRecord(w.pending, r)
	})
	added := w.pending[before:]
	full = len(w.pending) >= maxPending
	w.mu.Unlock()
	if len(added) > 0 {
		err = w.journal.append(added)
	}
	return full, err
}

// maps reports whether the layer has r already.
func (w *Writable) maps(r record) bool {
	var s [1]span
	off, n := int64(r.lba())*SectorSize, int64(r.sectors())*SectorSize
	w.extents.spans(off, n, s[:])
	want := r.span(off, n)
	return s[0] == want
}

// sync makes every write that has returned durable: data, then records.
func (w *Writable) sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.syncing.Lock()
	defer w.syncing.Unlock()
	w.mu.Lock()
	records := w.pending
	w.pending = nil
	closed := w.closed
	w.mu.Unlock()
	if closed {
		return fs.ErrClosed
	}
	if err := w.flush(records); err != nil { // the next Sync writes them to the same place
		w.mu.Lock()
		w.pending = append(records, w.pending...)
		w.mu.Unlock()
		return err
	}
	return w.trimJournal()
}

// trimJournal drops what is in the index file from the journal.
func (w *Writable) trimJournal() error {
	w.journal.mu.Lock() // no record comes meanwhile
	defer w.journal.mu.Unlock()
	w.mu.RLock()
	pending := w.pending
	w.mu.RUnlock()
	return w.journal.trim(pending)
}

func (w *Writable) flush(records []byte) error {
	if err := datasync(w.data.File); err != nil {
		return err
	}
	if len(records) == 0 {
		return nil
	}
	if _, err := w.index.WriteAt(records, w.indexEnd); err != nil {
		return err
	}
	if err := datasync(w.index); err != nil {
		return err
	}
	w.indexEnd += int64(len(records))
	return nil
}

// datasync makes the content of a file of the layer durable.
func datasync(f *os.File) error {
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}

// spans is extents.spans under the lock.
func (w *Writable) spans(off, n int64, out []span) (used int, err error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return 0, fs.ErrClosed
	}
	return w.extents.spans(off, n, out), nil
}

// VirtualSize returns the size of the volume in bytes; 0 means that of the
// layer below.
func (w *Writable) VirtualSize() int64 { return w.header.VirtualSize }

// Close makes the layer durable and closes its files.
func (w *Writable) Close() error {
	err := w.sync(context.Background())
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	w.mu.Unlock()
	if closed {
		return nil
	}
	return errors.Join(err, w.closeJournal(err == nil), w.data.Close(), w.index.Close())
}

// closeJournal deletes the journal if the index has all of it.
func (w *Writable) closeJournal(synced bool) error {
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	if synced {
		return w.journal.remove()
	}
	if w.journal.f == nil {
		return nil
	}
	return w.journal.f.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
