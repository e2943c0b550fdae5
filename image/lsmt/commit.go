// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// A Source is what can be committed: a *Writable, a *Layer or a *Stack.
type Source interface {
	// content returns what the sealed layer says of itself, its records, and
	// how to read the sectors they point to.
	content() (Header, index, readFunc, error)
}

// readFunc fills p from byte offset off of the source number tag.
type readFunc func(ctx context.Context, tag uint8, p []byte, off int64) error

// CommitOptions say what a committed layer is called. Empty UUIDs are stored
// as nil and as the source's parent.
type CommitOptions struct {
	UUID       string
	ParentUUID string
	UserTag    string // at most 256 bytes
}

const (
	// copySectors is the longest run that a commit writes as one record before
	// it merges neighbours: the reference's buffer of 32 KiB. It decides where
	// long runs are cut, so it is durable.
	copySectors = 64

	// padRecords: a committed index is padded to a multiple of 4 KiB.
	padRecords = 256
)

// Commit writes src to w as a sealed layer without dead data. It writes from
// the first byte to the last, so w may compress or upload. The bytes depend
// on the content of src and opts alone.
func Commit(ctx context.Context, w io.Writer, src Source, opts CommitOptions) error {
	if err := commitAll(ctx, w, src, opts); err != nil {
		return fmt.Errorf("commit layer: %w", err)
	}
	return nil
}

func commitAll(ctx context.Context, w io.Writer, src Source, opts CommitOptions) error {
	h, x, read, err := src.content()
	if err != nil {
		return err
	}
	c, err := newCommit(w, h, opts)
	if err != nil {
		return err
	}
	for _, r := range x {
		if err := c.copy(ctx, r, read); err != nil {
			return err
		}
	}
	return c.finish()
}

// A commit is a sealed layer that is being written.
type commit struct {
	w      io.Writer
	header Header
	index  index
	sector uint64 // where the next data goes
	packed bool   // no padding: so the reference writes layers with a target
	buf    [copySectors * SectorSize]byte
}

// newCommit writes the header of a layer that is as h says, but for its names.
func newCommit(w io.Writer, h Header, opts CommitOptions) (*commit, error) {
	var err error
	if h.UUID, err = checkUUID(opts.UUID); err != nil {
		return nil, err
	}
	if opts.ParentUUID != "" {
		if h.ParentUUID, err = checkUUID(opts.ParentUUID); err != nil {
			return nil, err
		}
	}
	if len(opts.UserTag) > maxUserTag {
		return nil, fmt.Errorf("user tag of %d bytes, at most %d fit", len(opts.UserTag), maxUserTag)
	}
	h.Flags, h.IndexOffset, h.IndexRecords = FlagHeader|FlagData|FlagSealed, 0, 0
	h.UserTag = opts.UserTag
	if _, err := w.Write(h.marshal()); err != nil {
		return nil, err
	}
	return &commit{w: w, header: h, sector: firstSector}, nil
}

// copy writes the data of r and its record.
func (c *commit) copy(ctx context.Context, r record, read readFunc) error {
	if r.zeroed() {
		return c.emit(newZeroed(r.lba(), r.sectors(), c.sector))
	}
	for lba := r.lba(); lba < r.end(); {
		part := r.clip(lba, min(lba+copySectors, r.end()))
		p := c.buf[:part.sectors()*SectorSize]
		if err := read(ctx, part.tag(), p, int64(part.source())*SectorSize); err != nil {
			return err
		}
		at, err := c.data(p)
		if err != nil {
			return err
		}
		if err := c.emit(newRecord(lba, part.sectors(), at)); err != nil {
			return err
		}
		lba = part.end()
	}
	return nil
}

// data writes whole sectors and returns the first of them.
func (c *commit) data(p []byte) (at uint64, err error) {
	at = c.sector
	if _, err := c.w.Write(p); err != nil {
		return 0, err
	}
	c.sector += uint64(len(p)) / SectorSize
	return at, nil
}

// emit adds r to the index, joining it to the record before where it goes on.
func (c *commit) emit(r record) error {
	c.index = appendJoined(c.index, r)
	if len(c.index) > maxSealed {
		return fmt.Errorf("more than %d records, which the reference does not read", maxSealed)
	}
	return nil
}

// appendJoined appends r, or lengthens the last record by it. The limit on the
// length is the reference's: one less than a record could tell.
func appendJoined(x index, r record) index {
	if n := len(x); n > 0 && x[n-1].continues(r) && x[n-1].sectors()+r.sectors() < maxSectors {
		x[n-1].at += r.sectors() << lbaBits
		return x
	}
	return append(x, r)
}

func (c *commit) finish() error {
	for !c.packed && len(c.index)%padRecords != 0 {
		c.index = append(c.index, padding)
	}
	h := c.header
	h.Flags = FlagData | FlagSealed
	h.IndexOffset = int64(c.sector) * SectorSize
	h.IndexRecords = int64(len(c.index))
	_, err := c.w.Write(append(c.index.marshal(), h.marshal()...))
	return err
}

func (x index) marshal() []byte {
	b := make([]byte, 0, len(x)*recordSize)
	for _, r := range x {
		b = appendRecord(b, r)
	}
	return b
}

func (l *Layer) content() (Header, index, readFunc, error) {
	return l.trailer, l.index, func(ctx context.Context, _ uint8, p []byte, off int64) error {
		return readFull(ctx, l.src, p, off)
	}, nil
}

func (s *Stack) content() (Header, index, readFunc, error) {
	h := Header{VirtualSize: s.size, ParentUUID: s.parent}
	return h, s.index, func(ctx context.Context, tag uint8, p []byte, off int64) error {
		return readFull(ctx, s.sources[tag], p, off)
	}, nil
}

func (w *Writable) content() (Header, index, readFunc, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return Header{}, nil, nil, fs.ErrClosed
	}
	return w.header, w.extents.flat(), func(_ context.Context, _ uint8, p []byte, off int64) error {
		if n, err := w.data.ReadAt(p, off); n < len(p) {
			return fmt.Errorf("read writable layer at %d: %w", off, noEOF(err))
		}
		return nil
	}, nil
}

// Seal turns the data file into a sealed layer in place: it appends the index
// and a trailer. The index file is of no use after it, and w accepts nothing
// but Close.
func (w *Writable) Seal(ctx context.Context) error {
	if err := w.sync(ctx); err != nil {
		return err
	}
	if err := w.seal(); err != nil {
		return err
	}
	return w.closeJournal(true)
}

func (w *Writable) seal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fs.ErrClosed
	}
	if err := w.appendTrailer(); err != nil {
		return fmt.Errorf("seal %s: %w", w.data.Name(), err)
	}
	w.closed = true
	return errors.Join(datasync(w.data.File), w.data.Close(), w.index.Close())
}

// appendTrailer writes the index and the trailer behind the data.
func (w *Writable) appendTrailer() error {
	var x index
	for _, r := range w.extents.flat() {
		x = appendJoined(x, r)
	}
	if len(x) > maxSealed {
		return fmt.Errorf("more than %d records, which the reference does not read: commit it instead", maxSealed)
	}
	h := w.header
	h.Flags = FlagData | FlagSealed | h.Flags&FlagSparse
	h.IndexOffset, h.IndexRecords = w.end(), int64(len(x))
	b := x.marshal()
	b = append(b, make([]byte, -len(b)&(SectorSize-1))...)
	_, err := w.data.WriteAt(append(b, h.marshal()...), h.IndexOffset)
	return err
}

// end returns the byte offset where the data ends.
func (w *Writable) end() int64 {
	if w.sparse {
		return headerSize + w.header.VirtualSize
	}
	return w.tail
}

// IsSealed reports whether the data file at path has been sealed.
func IsSealed(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() < 2*headerSize {
		return false, err
	}
	b := make([]byte, headerSize)
	if _, err := f.ReadAt(b, st.Size()-headerSize); err != nil {
		return false, err
	}
	h, err := parseHeader(b, st.Size()-headerSize)
	return err == nil && h.Flags.is(FlagData|FlagSealed, FlagHeader|FlagData|FlagSealed), nil
}
