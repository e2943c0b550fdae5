// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A fileWriter writes the content of a regular file.
type fileWriter struct {
	ctx    context.Context // of the whole write
	f      *FS
	ino    vfs.Ino
	hint   int64  // expected size, 0 if not known
	off    int64  // of the next byte
	tail   []byte // what is there of the block that off is in, zeroes not counted
	ahead  run    // allocated, not yet used
	mapped bool   // nothing may follow
	closed bool
}

var _ vfs.FileWriter = (*fileWriter)(nil)

// Writer empties the regular file ino and returns a writer of its new content.
// A file whose size is known lies in one piece where possible.
func (f *FS) Writer(ctx context.Context, ino vfs.Ino, size int64) (vfs.FileWriter, error) {
	if err := f.begin(ctx); err != nil {
		return nil, err
	}
	n, err := f.regular(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("write inode %d: %w", ino, err)
	}
	if err := f.truncate(ctx, n); err != nil {
		return nil, fmt.Errorf("empty inode %d: %w", ino, err)
	}
	return &fileWriter{ctx: ctx, f: f, ino: ino, hint: size}, nil
}

func (f *FS) regular(ctx context.Context, ino vfs.Ino) (inode, error) {
	n, err := f.inode(ctx, ino)
	if err == nil && n.kind() != syscall.S_IFREG {
		err = syscall.EINVAL
	}
	return n, err
}

// open fails if nothing may be written.
func (w *fileWriter) open() error {
	switch {
	case w.closed:
		return fs.ErrClosed
	case w.mapped:
		return fmt.Errorf("write inode %d behind what is mapped: %w", w.ino, syscall.EINVAL)
	}
	return nil
}

// Write appends p.
func (w *fileWriter) Write(p []byte) (int, error) {
	if err := w.open(); err != nil {
		return 0, err
	}
	done := 0
	if in := w.inBlock(); in > 0 {
		k := min(len(p), int(w.f.sb.blockSize)-in)
		w.fillTail(in)
		w.tail = append(w.tail, p[:k]...)
		w.off += int64(k)
		done = k
		if w.inBlock() > 0 {
			return done, nil
		}
		if err := w.flushTail(); err != nil {
			return done, err
		}
	}
	whole := (len(p) - done) &^ int(w.f.sb.blockSize-1)
	n, err := w.blocks(w.off, p[done:done+whole])
	w.off += int64(n)
	done += n
	if err != nil {
		return done, err
	}
	w.tail = append(w.tail, p[done:]...) // less than a block
	w.off += int64(len(p) - done)
	return len(p), nil
}

// Skip makes the next n bytes of the file read as zeroes. Whole blocks of them
// take no space.
func (w *fileWriter) Skip(n int64) error {
	if err := w.open(); err != nil {
		return err
	}
	if n < 0 {
		return fmt.Errorf("skip %d bytes of inode %d: %w", n, w.ino, syscall.EINVAL)
	}
	if limit := w.f.sb.off(endOfFile - 1); n > limit-w.off {
		return fmt.Errorf("skip %d bytes of inode %d: %w", n, w.ino, syscall.EFBIG)
	}
	if int64(w.inBlock())+n >= w.f.sb.blockSize {
		if err := w.flushTail(); err != nil {
			return err
		}
	}
	w.off += n
	return nil
}

// Close writes what is left and sets the size of the file.
func (w *fileWriter) Close() error {
	if w.closed {
		return fs.ErrClosed
	}
	w.closed = true
	if err := w.flushTail(); err != nil {
		return err
	}
	if err := w.giveBack(); err != nil {
		return err
	}
	n, err := w.f.regular(w.ctx, w.ino)
	if err != nil {
		return err
	}
	n.putSize(w.off)
	return w.f.noteLarge(w.ctx, w.off)
}

// noteLarge sets the feature that files of 2 GiB and more need.
func (f *FS) noteLarge(ctx context.Context, size int64) error {
	if size < 1<<31 || f.sb.roCompat&roLargeFile != 0 {
		return nil
	}
	f.sb.roCompat |= roLargeFile
	le.PutUint32(f.sb.raw[sbROCompat:], f.sb.roCompat)
	return f.putSuper(ctx)
}

// inBlock returns how many bytes of the block that off is in lie before off.
func (w *fileWriter) inBlock() int { return int(w.off & (w.f.sb.blockSize - 1)) }

// fillTail makes the tail at least n bytes long, with zeroes.
func (w *fileWriter) fillTail(n int) {
	if have := len(w.tail); have < n {
		w.tail = slices.Grow(w.tail, int(w.f.sb.blockSize)-have)[:n]
		clear(w.tail[have:])
	}
}

// flushTail writes the tail as the block it is, padded with zeroes.
func (w *fileWriter) flushTail() error {
	if len(w.tail) == 0 {
		return nil
	}
	at := (w.off - 1) &^ (w.f.sb.blockSize - 1)
	w.fillTail(int(w.f.sb.blockSize))
	_, err := w.blocks(at, w.tail)
	w.tail = w.tail[:0]
	return err
}

// blocks stores p, whole blocks, at byte offset off of the file, and returns
// how much of it was.
func (w *fileWriter) blocks(off int64, p []byte) (int, error) {
	n, err := w.place(off, int64(len(p)), func(at, from, to int64) error {
		return w.f.out.Write(w.ctx, p[from:to], at)
	})
	return int(n), err
}

// place finds room for n bytes, whole blocks, at byte offset off of the file,
// and has put store them: the bytes [from, to) of the n, which belong at byte
// offset at of the device. It returns how many were.
func (w *fileWriter) place(off, n int64, put func(at, from, to int64) error) (done int64, err error) {
	if n == 0 {
		return 0, nil
	}
	f := w.f
	if err := f.begin(w.ctx); err != nil {
		return 0, err
	}
	ino, err := f.regular(w.ctx, w.ino)
	if err != nil {
		return 0, err
	}
	bs := f.sb.blockSize
	for done < n {
		r, err := w.take(off+done, uint64((n-done)/bs))
		if err != nil {
			return done, fmt.Errorf("write inode %d: %w", w.ino, err)
		}
		if err := f.appendExtent(w.ctx, ino, uint64((off+done)/bs), r); err != nil {
			return done, errors.Join(err, f.freeRun(w.ctx, r))
		}
		size := int64(r.n) * bs
		if err := put(f.sb.off(r.start), done, done+size); err != nil {
			return done, err
		}
		done += size
	}
	return done, nil
}

// take returns up to n blocks for content at byte offset off. It allocates as
// many as are to be expected from there on.
func (w *fileWriter) take(off int64, n uint64) (run, error) {
	if w.ahead.n == 0 {
		rest := uint64(max(w.hint-off, 0)+w.f.sb.blockSize-1) / uint64(w.f.sb.blockSize)
		r, err := w.f.allocData(w.ctx, max(n, min(rest, w.f.sb.blocks)))
		if err != nil {
			return run{}, err
		}
		w.ahead = r
	}
	r := run{w.ahead.start, min(n, w.ahead.n)}
	w.ahead = run{r.end(), w.ahead.n - r.n}
	return r, nil
}

// giveBack frees what was allocated and not used.
func (w *fileWriter) giveBack() error {
	if w.ahead.n == 0 {
		return nil
	}
	if w.f.data == w.ahead.end() {
		w.f.data = w.ahead.start
	}
	err := w.f.mark(w.ctx, w.ahead, false)
	w.ahead = run{}
	return err
}
