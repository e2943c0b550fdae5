// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A Builder makes a sealed layer while the volume is being written. Content,
// which is written once, goes out at once, or is somewhere else already; what may
// be written again waits in a scratch file, and comes last. The bytes depend on
// what was written and the options alone.
//
// Content cannot be read back. Unlike other volumes, a Builder is not safe for
// concurrent use.
type Builder struct {
	lower   *Stack // may be nil
	size    int64
	target  bool
	commit  *commit
	scratch *os.File // has no name, so that nothing can be left behind
	tail    int64    // where the next write goes in scratch

	extents extents // of the source that the tags tell
}

var _ backend.Writer = (*Builder)(nil)

// The tags of a layer being made.
const (
	scratchTag = iota // the scratch file
	contentTag        // the layer: what has gone out
	mappedTag         // the target
)

// errContent says that what has gone out cannot be had back.
var errContent = errors.New("content of a layer that is being made cannot be read")

// BuilderOptions describe a new layer.
type BuilderOptions struct {
	CommitOptions

	VirtualSize int64  // bytes; 0 takes the size of what lies below
	TempDir     string // for the scratch file; os.TempDir if empty

	// Target says that the layer is to be opened with a target, in which
	// content may lie.
	Target bool
}

// Build begins a layer over lower, which may be nil, stays the caller's, and
// must stay open. The layer goes to w, and is complete when Finish returns nil.
func Build(w io.Writer, lower *Stack, opts BuilderOptions) (*Builder, error) {
	size := opts.VirtualSize
	if size == 0 && lower != nil {
		size = lower.Size()
	}
	if err := checkSize(size); err != nil {
		return nil, fmt.Errorf("build layer: %w", err)
	}
	c, err := newCommit(w, Header{VirtualSize: size, ParentUUID: nilUUID}, opts.CommitOptions)
	if err != nil {
		return nil, fmt.Errorf("build layer: %w", err)
	}
	f, err := unnamed(opts.TempDir)
	if err != nil {
		return nil, fmt.Errorf("build layer: %w", err)
	}
	c.packed = opts.Target
	return &Builder{lower: lower, size: size, target: opts.Target, commit: c, scratch: f}, nil
}

// unnamed returns a new file that has no name any more.
func unnamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "overlaybd-scratch-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Size returns the size of the volume in bytes.
func (b *Builder) Size() int64 { return b.size }

// ReadAt reads from the volume under the io.ReaderAt contract.
func (b *Builder) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := clampRead(len(p), off, b.size)
	var spans [16]span // enough for most reads; longer ones go round again
	for p = p[:n]; len(p) > 0; {
		used := b.extents.spans(off, int64(len(p)), spans[:])
		for _, s := range spans[:used] {
			if err := b.fill(ctx, p[:s.n], off, s); err != nil {
				return 0, fmt.Errorf("read %d bytes at %d: %w", s.n, off, err)
			}
			p, off = p[s.n:], off+s.n
		}
	}
	return n, eof
}

// fill reads the bytes p at off, which s covers.
func (b *Builder) fill(ctx context.Context, p []byte, off int64, s span) error {
	switch {
	case s.kind == spanData && s.tag != scratchTag:
		return errContent
	case s.kind == spanData:
		return b.readScratch(ctx, scratchTag, p, s.at)
	case s.kind == spanHole && b.lower != nil:
		return b.lower.fill(ctx, p, off)
	}
	clear(p)
	return nil
}

func (b *Builder) readScratch(_ context.Context, _ uint8, p []byte, off int64) error {
	if n, err := b.scratch.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("scratch file at %d: %w", off, noEOF(err))
	}
	return nil
}

// WriteAt stores whole sectors at a sector's offset.
func (b *Builder) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	if err := checkRange("write", off, int64(len(p)), b.size); err != nil {
		return 0, err
	}
	if _, err := b.scratch.WriteAt(p, b.tail); err != nil {
		return 0, fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	b.record(off, int64(len(p)), uint64(b.tail)/SectorSize, scratchTag)
	b.tail += int64(len(p))
	return len(p), nil
}

// WriteContent stores whole sectors that are neither to be read nor, as a
// rule, to be written again: what they replace stays in the layer.
func (b *Builder) WriteContent(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := checkRange("write", off, int64(len(p)), b.size); err != nil {
		return 0, err
	}
	at, err := b.commit.data(p)
	if err != nil {
		return 0, fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	b.record(off, int64(len(p)), at, contentTag)
	return len(p), nil
}

// MapContent makes n bytes from off those from byte offset at of the target: whole
// sectors that are neither to be read nor, as a rule, to be written again.
func (b *Builder) MapContent(_ context.Context, off, n, at int64) error {
	if err := checkRange("map", off, n, b.size); err != nil {
		return err
	}
	switch {
	case !b.target:
		return fmt.Errorf("map content: the layer has no target: %w", errors.ErrUnsupported)
	case at < 0 || at%SectorSize != 0:
		return fmt.Errorf("map %d bytes from %d of the target: it begins at no sector", n, at)
	}
	b.record(off, n, uint64(at)/SectorSize, mappedTag)
	return nil
}

// Discard makes whole sectors read as zeros. Of those that do so anyway it
// notes nothing.
func (b *Builder) Discard(_ context.Context, off, n int64) error {
	if err := checkRange("discard", off, n, b.size); err != nil {
		return err
	}
	if !b.shows(off, n) {
		return nil
	}
	for lba, end := uint64(off)/SectorSize, uint64(off+n)/SectorSize; lba < end; {
		run := min(end-lba, maxSectors)
		b.extents.insert(newZeroed(lba, run, firstSector))
		lba += run
	}
	return nil
}

// shows reports whether anything but zeros may be read in n bytes from off.
func (b *Builder) shows(off, n int64) bool {
	var one [1]span
	for n > 0 {
		b.extents.spans(off, n, one[:])
		s := one[0]
		if s.kind == spanData || s.kind == spanHole && b.lower != nil && b.lower.index.shows(off, s.n) {
			return true
		}
		off, n = off+s.n, n-s.n
	}
	return false
}

// record maps n bytes at off to the source from sector at on.
func (b *Builder) record(off, n int64, at uint64, tag uint8) {
	for lba, end := uint64(off)/SectorSize, uint64(off+n)/SectorSize; lba < end; {
		run := min(end-lba, maxSectors)
		b.extents.insert(newRecord(lba, run, at).withTag(tag))
		lba, at = lba+run, at+run
	}
}

// Sync does nothing: there is nothing to come back to before Finish.
func (b *Builder) Sync(ctx context.Context) error { return ctx.Err() }

// Finish writes what has not gone out, the index and the trailer. The Builder
// accepts nothing but Close after it.
func (b *Builder) Finish(ctx context.Context) error {
	for _, r := range b.extents.flat() {
		if err := b.finish(ctx, r); err != nil {
			return fmt.Errorf("finish layer: %w", err)
		}
	}
	if err := b.commit.finish(); err != nil {
		return fmt.Errorf("finish layer: %w", err)
	}
	return nil
}

// finish writes what r stands for, and its record.
func (b *Builder) finish(ctx context.Context, r record) error {
	switch r.tag() {
	case contentTag:
		return b.commit.emit(r.withTag(fileTag))
	case mappedTag:
		return b.commit.emit(r.withTag(targetTag))
	}
	return b.commit.copy(ctx, r, b.readScratch)
}

// Close gives up what is not finished. What lies below stays open.
func (b *Builder) Close() error { return b.scratch.Close() }
