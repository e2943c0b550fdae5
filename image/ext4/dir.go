// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// maxDirSize bounds a directory (2 GiB, as without the large_dir feature).
const maxDirSize = 1<<31 - 1

// dir returns the inode no, which must be a directory.
func (f *FS) dir(ctx context.Context, no vfs.Ino) (inode, error) {
	n, err := f.inode(ctx, no)
	if err != nil {
		return inode{}, err
	}
	if !n.isDir() {
		return inode{}, fmt.Errorf("inode %d: %w", no, syscall.ENOTDIR)
	}
	if size := n.size(); size == 0 || size%f.sb.blockSize != 0 || size > min(maxDirSize, f.sb.off(f.sb.blocks)) {
		return inode{}, f.inodeCorrupt(n, "i_size", "%d of a directory", size)
	}
	return n, nil
}

// dirBlocks returns how many blocks the directory n has.
func (f *FS) dirBlocks(n inode) uint64 { return uint64(n.size() / f.sb.blockSize) }

// dirBlock returns block i of the directory n.
func (f *FS) dirBlock(ctx context.Context, n inode, i uint64) (*block, error) {
	if err := ctx.Err(); err != nil { // a damaged directory may seem very large
		return nil, err
	}
	m, err := f.lookup(ctx, n, i)
	if err != nil {
		return nil, err
	}
	if m.hole || i >= f.dirBlocks(n) {
		return nil, f.inodeCorrupt(n, "i_block", "block %d of the directory is missing", i)
	}
	return f.cache.get(ctx, m.start)
}

// appendDirBlock adds a block of zeroes to the directory n, and returns it and
// which it is.
func (f *FS) appendDirBlock(ctx context.Context, n inode) (*block, uint64, error) {
	i := f.dirBlocks(n)
	if n.size()+f.sb.blockSize > maxDirSize {
		return nil, 0, fmt.Errorf("grow directory %d: %w", n.no, syscall.EFBIG)
	}
	b, err := f.allocMeta(ctx)
	if err != nil {
		return nil, 0, err
	}
	if err := f.appendExtent(ctx, n, i, run{b.no, 1}); err != nil {
		return nil, 0, errors.Join(err, f.freeRun(ctx, run{b.no, 1}))
	}
	n.putSize(n.size() + f.sb.blockSize)
	return b, i, nil
}

func (f *FS) dirCorrupt(n inode, b *block, err error) error {
	return corrupt(fmt.Sprintf("directory %d", n.no), f.sb.off(b.no), "entry", "%v", err)
}

// A slot is where a name was found.
type slot struct {
	blk         *block
	off, before int // of the entry and of the one before it in the block
}

func (s slot) entry() dirent { return dirent(s.blk.data[s.off:]) }

// find returns where name is in the directory n.
func (f *FS) find(ctx context.Context, n inode, name string) (slot, error) {
	if n.has(flagIndex) && name != "." && name != ".." {
		return f.findIndexed(ctx, n, name)
	}
	for i := range f.dirBlocks(n) {
		b, err := f.dirBlock(ctx, n, i)
		if err != nil {
			return slot{}, err
		}
		if s, err := f.findIn(n, b, name); err != nil || s.blk != nil {
			return s, err
		}
	}
	return slot{}, fs.ErrNotExist
}

// findIn looks for name in the block b of the directory n. The slot is zero if
// it is not there.
func (f *FS) findIn(n inode, b *block, name string) (slot, error) {
	off, before, err := findName(b.data, name)
	if err != nil {
		return slot{}, f.dirCorrupt(n, b, err)
	}
	if off < 0 {
		return slot{}, nil
	}
	s := slot{b, off, before}
	if err := f.checkEntry(n, b, s.entry()); err != nil {
		return slot{}, err
	}
	return s, nil
}

// checkEntry checks that d leads to an inode that files may have.
func (f *FS) checkEntry(n inode, b *block, d dirent) error {
	if ino := d.ino(); ino != RootIno && ino < f.sb.firstIno || ino > vfs.Ino(f.sb.inodes) {
		return f.dirCorrupt(n, b, fmt.Errorf("%w: %q is inode %d", errEntry, d.name(), ino))
	}
	return nil
}

// insert adds a name that is not there yet to the directory n.
func (f *FS) insert(ctx context.Context, n inode, name string, ino vfs.Ino, t vfs.Type) error {
	if !f.sb.hasFiletype() {
		t = vfs.TypeUnknown
	}
	if n.has(flagIndex) {
		return f.insertIndexed(ctx, n, name, ino, t)
	}
	blocks := f.dirBlocks(n)
	for i := range blocks {
		b, err := f.dirBlock(ctx, n, i)
		if err != nil {
			return err
		}
		if ok, err := f.insertIn(n, b, name, ino, t); ok || err != nil {
			return err
		}
	}
	if blocks == 1 && f.sb.hasDirIndex() {
		if err := f.makeIndex(ctx, n); err != nil {
			return err
		}
		return f.insertIndexed(ctx, n, name, ino, t)
	}
	b, _, err := f.appendDirBlock(ctx, n)
	if err != nil {
		return err
	}
	dirent(b.data).put(name, ino, t)
	return nil
}

// insertIn adds a name to the block b of the directory n if there is room.
func (f *FS) insertIn(n inode, b *block, name string, ino vfs.Ino, t vfs.Type) (bool, error) {
	ok, err := insertName(b.data, name, ino, t)
	if err != nil {
		return false, f.dirCorrupt(n, b, err)
	}
	b.dirty = b.dirty || ok
	return ok, nil
}

// remove takes the name at s out of its directory.
func (s slot) remove() {
	removeName(s.blk.data, s.off, s.before)
	s.blk.dirty = true
}

// blockEntries yields the entries of the block b of the directory n that are
// in use, "." and ".." among them.
func (f *FS) blockEntries(n inode, b *block) iter.Seq2[dirent, error] {
	return func(yield func(dirent, error) bool) {
		for off := 0; off < len(b.data); {
			d, err := direntAt(b.data, off)
			if err != nil {
				yield(nil, f.dirCorrupt(n, b, err))
				return
			}
			off += len(d)
			if d.ino() == 0 {
				continue
			}
			if err := f.checkEntry(n, b, d); err != nil {
				yield(nil, err)
				return
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// ReadDir yields the entries of the directory dir without "." and "..", in
// the order they are stored in. It ends with the first error. Meanwhile names
// may be removed, but not added: it holds one block of the directory.
func (f *FS) ReadDir(ctx context.Context, dir vfs.Ino) iter.Seq2[vfs.DirEntry, error] {
	return func(yield func(vfs.DirEntry, error) bool) {
		for i := uint64(0); ; i++ {
			entries, more, err := f.readDirBlock(ctx, dir, i)
			if err != nil {
				yield(vfs.DirEntry{}, fmt.Errorf("read directory: %w", err))
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			if !more {
				return
			}
		}
	}
}

// readDirBlock returns the entries of block i of dir, and whether there is
// another block.
func (f *FS) readDirBlock(ctx context.Context, dir vfs.Ino, i uint64) (entries []vfs.DirEntry, more bool, err error) {
	if err := f.begin(ctx); err != nil {
		return nil, false, err
	}
	n, err := f.dir(ctx, dir)
	if err != nil {
		return nil, false, err
	}
	b, err := f.dirBlock(ctx, n, i)
	if err != nil {
		return nil, false, err
	}
	for d, err := range f.blockEntries(n, b) {
		if err != nil {
			return nil, false, err
		}
		if !d.isDots() {
			entries = append(entries, vfs.DirEntry{Name: string(d.name()), Ino: d.ino(), Type: f.entryType(d)})
		}
	}
	return entries, i+1 < f.dirBlocks(n), nil
}

func (f *FS) entryType(d dirent) vfs.Type {
	if !f.sb.hasFiletype() || d.kind() > vfs.TypeSymlink {
		return vfs.TypeUnknown
	}
	return d.kind()
}

// isEmpty reports whether the directory n has only "." and "..".
func (f *FS) isEmpty(ctx context.Context, n inode) (bool, error) {
	for i := range f.dirBlocks(n) {
		b, err := f.dirBlock(ctx, n, i)
		if err != nil {
			return false, err
		}
		for d, err := range f.blockEntries(n, b) {
			if err != nil || !d.isDots() {
				return false, err
			}
		}
	}
	return true, nil
}

// initDir gives the new directory n its first block.
func (f *FS) initDir(ctx context.Context, n inode, parent vfs.Ino) error {
	b, _, err := f.appendDirBlock(ctx, n)
	if err != nil {
		return err
	}
	t := vfs.TypeDirectory
	if !f.sb.hasFiletype() {
		t = vfs.TypeUnknown
	}
	putDots(b.data, n.no, parent, t)
	return nil
}

// putDots makes b a block of a directory with "." and "..".
func putDots(b []byte, self, parent vfs.Ino, t vfs.Type) {
	dirent(b[:direntSize(1)]).put(".", self, t)
	dirent(b[direntSize(1):]).put("..", parent, t)
}
