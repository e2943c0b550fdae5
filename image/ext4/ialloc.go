// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// inodeBitmap returns the inode bitmap of group g, made up if it was never
// written.
func (f *FS) inodeBitmap(ctx context.Context, g int) (*block, error) {
	d := &f.groups[g]
	if d.flags&groupInodeUninit == 0 {
		return f.cache.get(ctx, d.inodeBitmap)
	}
	b := f.cache.zero(d.inodeBitmap)
	bitmap(b.data).put(true, uint64(f.sb.inodesPer), uint64(8*len(b.data))-uint64(f.sb.inodesPer))
	d.flags &^= groupInodeUninit
	d.unused = f.sb.inodesPer
	d.dirty = true
	return b, nil
}

// allocInode marks the first free inode as used and returns it filled with
// zeroes.
func (f *FS) allocInode(ctx context.Context, dir bool) (inode, error) {
	for g := int(f.inoHint); g < len(f.groups); g++ {
		if f.groups[g].freeInodes == 0 {
			continue
		}
		b, err := f.inodeBitmap(ctx, g)
		if err != nil {
			return inode{}, err
		}
		from := uint64(0)
		if g == 0 {
			from = uint64(f.sb.firstIno) - 1
		}
		limit := min(uint64(f.sb.inodesPer), uint64(8*len(b.data)))
		if i := bitmap(b.data).next(false, min(from, limit), limit); i < limit {
			f.inoHint = uint32(g)
			return f.takeInode(ctx, g, b, uint32(i), dir)
		}
	}
	return inode{}, fmt.Errorf("allocate an inode: %w", syscall.ENOSPC)
}

func (f *FS) takeInode(ctx context.Context, g int, b *block, i uint32, dir bool) (inode, error) {
	d := &f.groups[g]
	bitmap(b.data).put(true, uint64(i), 1)
	b.dirty, d.dirty = true, true
	d.freeInodes--
	if dir {
		d.dirs++
	}
	if f.sb.hasGDTCsum() {
		if err := f.useTable(g, i); err != nil {
			return inode{}, err
		}
	}
	n, err := f.rawInode(ctx, vfs.Ino(uint32(g)*f.sb.inodesPer+i+1))
	if err != nil {
		return inode{}, err
	}
	clear(n.raw)
	n.blk.dirty = true
	return n, nil
}

// useTable moves the part of the inode table of group g that was never
// written behind inode i. Inodes are taken in order, so none is skipped.
func (f *FS) useTable(g int, i uint32) error {
	d := &f.groups[g]
	written := f.sb.inodesPer - d.unused
	switch {
	case i > written:
		return corrupt(fmt.Sprintf("group descriptor %d", g), f.sb.off(f.sb.first+1), "bg_itable_unused", "%d, but inode %d of the group is in use", d.unused, i-1)
	case i == written:
		d.unused--
	}
	return nil
}

// freeInode gives n back and leaves zeroes in its place.
func (f *FS) freeInode(ctx context.Context, n inode) error {
	g, i := f.sb.inodePos(n.no)
	d := &f.groups[g]
	b, err := f.inodeBitmap(ctx, g)
	if err != nil {
		return err
	}
	if !bitmap(b.data).isSet(uint64(i)) || d.freeInodes >= f.sb.inodesPer || n.isDir() && d.dirs == 0 {
		return corrupt(fmt.Sprintf("inode bitmap %d", g), f.sb.off(d.inodeBitmap), "bit", "inode %d is in use but not counted", n.no)
	}
	bitmap(b.data).put(false, uint64(i), 1)
	b.dirty, d.dirty = true, true
	d.freeInodes++
	if n.isDir() {
		d.dirs--
	}
	f.inoHint = min(f.inoHint, uint32(g))
	clear(n.raw)
	n.blk.dirty = true
	return nil
}

// inodePos returns the group of inode no and its index there.
func (sb *superblock) inodePos(no vfs.Ino) (g int, i uint32) {
	return int(uint32(no-1) / sb.inodesPer), uint32(no-1) % sb.inodesPer
}
