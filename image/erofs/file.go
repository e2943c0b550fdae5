// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A fileWriter writes the content of a file to consecutive blocks: what is
// skipped is not written, and so reads as zeros.
type fileWriter struct {
	ctx    context.Context // of the whole write
	f      *FS
	d      *draft
	start  int64  // of the content on the device, in bytes
	off    int64  // of the next byte
	tail   []byte // what is there of the block that off is in, zeros not counted
	ended  bool   // the rest of the last block is not to be written
	closed bool
}

var _ vfs.FileWriter = (*fileWriter)(nil)

// Writer empties the regular file ino and returns a writer of its new content.
func (f *FS) Writer(ctx context.Context, ino vfs.Ino, _ int64) (vfs.FileWriter, error) {
	n, in, err := f.stat(ctx, ino)
	switch {
	case err != nil:
	case in.kind() != vfs.TypeRegular:
		err = syscall.EINVAL
	case f.open:
		err = fmt.Errorf("another file is being written: %w", syscall.EBUSY)
	}
	if err != nil {
		return nil, fmt.Errorf("write inode %d: %w", ino, err)
	}
	d, err := f.edit(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("empty inode %d: %w", ino, err)
	}
	d.empty()
	f.open = true
	return &fileWriter{ctx: ctx, f: f, d: d, start: f.next << blockBits}, nil
}

// empty takes the content away from a regular file.
func (d *draft) empty() { d.size, d.data, d.layout, d.body = 0, 0, layoutPlain, nil }

// room reports whether n more bytes fit onto the device.
func (w *fileWriter) room(n int64) error {
	if end := w.f.m.sb.limit() << blockBits; n > end-w.start-w.off {
		return fmt.Errorf("%d bytes behind %d of a file at %d of a device of %d: %w", n, w.off, w.start, w.f.m.sb.device, syscall.ENOSPC)
	}
	return nil
}

func (w *fileWriter) check(n int64) error {
	switch {
	case w.closed:
		return fs.ErrClosed
	case w.ended || n < 0:
		return syscall.EINVAL
	}
	return w.room(n)
}

// Write appends p.
func (w *fileWriter) Write(p []byte) (int, error) {
	if err := w.check(int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		part := p[done:]
		in := w.inBlock()
		if in == 0 && len(part) >= blockSize {
			part = part[:len(part)&^(blockSize-1)]
			if err := w.f.out.Write(w.ctx, part, w.start+w.off); err != nil {
				return done, err
			}
			w.off += int64(len(part))
		} else {
			part = part[:min(len(part), blockSize-in)]
			w.fill(in)
			w.tail = append(w.tail, part...)
			if err := w.advance(len(part)); err != nil {
				return done, err
			}
		}
		done += len(part)
	}
	return done, nil
}

func (w *fileWriter) inBlock() int { return int(w.off & (blockSize - 1)) }

// fill makes the tail n bytes long.
func (w *fileWriter) fill(n int) { w.tail = append(w.tail, make([]byte, n-len(w.tail))...) }

// advance goes on behind n bytes that are in the tail.
func (w *fileWriter) advance(n int) error {
	w.off += int64(n)
	if w.inBlock() > 0 {
		return nil
	}
	return w.flush(w.off - blockSize)
}

// flush writes the tail, which belongs at off.
func (w *fileWriter) flush(off int64) error {
	w.fill(blockSize)
	err := w.f.out.Write(w.ctx, w.tail, w.start+off)
	w.tail = w.tail[:0]
	return err
}

// Skip makes the next n bytes zeros.
func (w *fileWriter) Skip(n int64) error {
	if err := w.check(n); err != nil {
		return err
	}
	if len(w.tail) > 0 {
		k := min(n, int64(blockSize-w.inBlock()))
		w.fill(w.inBlock() + int(k))
		if err := w.advance(int(k)); err != nil {
			return err
		}
		n -= k
	}
	w.off += n
	return nil
}

// Map makes the next n bytes those from byte offset at of the layer's target.
// More may follow if they end at a block.
func (w *fileWriter) Map(at, n int64) error {
	if err := w.check(n); err != nil {
		return err
	}
	switch {
	case w.f.mapper == nil, w.inBlock() > 0:
		return fmt.Errorf("map %d bytes: %w", n, errors.ErrUnsupported)
	case at < 0 || at%backend.SectorSize != 0:
		return fmt.Errorf("map byte %d of the target: %w", at, syscall.EINVAL)
	case n == 0:
		return nil
	}
	off, sectors := w.start+w.off, align(n, backend.SectorSize)
	if err := w.f.mapper.MapContent(w.ctx, off, sectors, at); err != nil {
		return fmt.Errorf("map %d bytes at %d: %w", sectors, off, err)
	}
	if rest := align(n, blockSize) - sectors; rest > 0 {
		if err := w.f.dev.Discard(w.ctx, off+sectors, rest); err != nil {
			return fmt.Errorf("discard %d bytes at %d: %w", rest, off+sectors, err)
		}
	}
	w.off += n
	w.ended = w.inBlock() > 0
	return nil
}

// Close makes what was written the content of the file.
func (w *fileWriter) Close() error {
	if w.closed {
		return fs.ErrClosed
	}
	w.closed, w.f.open = true, false
	if w.off == 0 || w.keep() {
		return nil
	}
	w.d.size, w.d.data = w.off, uint32(w.f.next)
	w.f.next += align(w.off, blockSize) >> blockBits
	if len(w.tail) == 0 {
		return nil
	}
	return w.flush(w.off &^ (blockSize - 1))
}

// Small files lie behind their inodes, and so are read with them. Until they
// are written they wait in memory.
const (
	smallFile = 1 << 10  // bytes: see BenchmarkUnpack; twice that would make metadata half as dense
	maxInline = 64 << 20 // bytes of such files in a layer, until the next Sync
)

// keep keeps the content of a small file in memory, and reports whether it did.
func (w *fileWriter) keep() bool {
	if len(w.tail) == 0 || w.off > smallFile || w.off > maxInline-w.f.inline || w.f.hold(w.off) != nil {
		return false
	}
	w.fill(int(w.off))
	w.d.size, w.d.body = w.off, slices.Clone(w.tail)
	w.f.inline += w.off
	return true
}
