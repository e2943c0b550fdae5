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
	c, err := newCommit(w, src, opts)
	if err == nil {
		err = c.run(ctx)
	}
	if err != nil {
		return fmt.Errorf("commit layer: %w", err)
	}
	return nil
}

// A commit is one Commit under way.
type commit struct {
	w      io.Writer
	read   readFunc
	header Header
	index  index
	out    index
	sector uint64 // where the next data goes
	buf    [copySectors * SectorSize]byte
}

func newCommit(w io.Writer, src Source, opts CommitOptions) (*commit, error) {
	h, x, read, err := src.content()
	if err != nil {
		return nil, err
	}
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
	return &commit{w: w, read: read, header: h, index: x, sector: firstSector}, nil
}

func (c *commit) run(ctx context.Context) error {
	if _, err := c.w.Write(c.header.marshal()); err != nil {
		return err
	}
	for _, r := range c.index {
		if err := c.copy(ctx, r); err != nil {
			return err
		}
	}
	return c.finish()
}

// copy writes the data of r.
func (c *commit) copy(ctx context.Context, r record) error {
	if r.zeroed() {
		return c.emit(newZeroed(r.lba(), r.sectors(), c.sector))
	}
	for lba := r.lba(); lba < r.end(); {
		part := r.clip(lba, min(lba+copySectors, r.end()))
		p := c.buf[:part.sectors()*SectorSize]
		if err := c.read(ctx, part.tag(), p, int64(part.source())*SectorSize); err != nil {
			return err
		}
		if _, err := c.w.Write(p); err != nil {
			return err
		}
		if err := c.emit(newRecord(lba, part.sectors(), c.sector)); err != nil {
			return err
		}
		c.sector += part.sectors()
		lba = part.end()
	}
	return nil
}

// emit adds r to the index, joining it to the record before where it goes on.
func (c *commit) emit(r record) error {
	c.out = appendJoined(c.out, r)
	if len(c.out) > maxSealed {
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
	for len(c.out)%padRecords != 0 {
		c.out = append(c.out, padding)
	}
	h := c.header
	h.Flags = FlagData | FlagSealed
	h.IndexOffset = int64(c.sector) * SectorSize
	h.IndexRecords = int64(len(c.out))
	_, err := c.w.Write(append(c.out.marshal(), h.marshal()...))
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
	return errors.Join(w.datasync(w.data.File), w.data.Close(), w.index.Close())
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
