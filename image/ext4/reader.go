// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"iter"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A Reader is a file system that nobody changes. Like an FS it is not safe for
// concurrent use. After an error it may be used on.
type Reader struct{ f *FS }

var _ vfs.Reader = (*Reader)(nil)

// readerBytes bounds the metadata that a Reader keeps (4 MiB): it is one of
// many, and what it reads is cached below it.
const readerBytes = 4 << 20

// NewReader opens the file system on dev, which stays the caller's. It reads
// the superblock and the group descriptors.
func NewReader(ctx context.Context, dev backend.Volume) (*Reader, error) {
	w := readOnly{dev}
	sb, err := readSuperblock(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	f := &FS{dev: w, sb: sb, cache: newCache(w, int(sb.blockSize))}
	f.cache.limit = readerBytes / f.cache.size
	if err := f.readGroups(ctx); err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	return &Reader{f}, nil
}

// Root returns the root directory.
func (r *Reader) Root() vfs.Ino { return RootIno }

// ReadDir yields the entries of a directory, as [FS.ReadDir] does.
func (r *Reader) ReadDir(ctx context.Context, dir vfs.Ino) iter.Seq2[vfs.DirEntry, error] {
	return r.f.ReadDir(ctx, dir)
}

// Readlink returns the target of the symbolic link ino.
func (r *Reader) Readlink(ctx context.Context, ino vfs.Ino) (string, error) {
	return r.f.Readlink(ctx, ino)
}

// Stat describes the file ino.
func (r *Reader) Stat(ctx context.Context, ino vfs.Ino) (vfs.Inode, error) { return r.f.Stat(ctx, ino) }

// ReadAt reads the content of the regular file ino, as [FS.ReadAt] does.
func (r *Reader) ReadAt(ctx context.Context, ino vfs.Ino, p []byte, off int64) (int, error) {
	return r.f.ReadAt(ctx, ino, p, off)
}

// InodeBlock returns the block that holds the inode ino, without reading it.
func (r *Reader) InodeBlock(ino vfs.Ino) (vfs.Extent, bool) {
	if ino == 0 || ino > vfs.Ino(r.f.sb.inodes) {
		return vfs.Extent{}, false
	}
	g, i := r.f.sb.inodePos(ino)
	at := r.f.sb.off(r.f.groups[g].inodeTable) + int64(i)*int64(r.f.sb.inodeSize)
	return vfs.Extent{Off: at &^ (r.f.sb.blockSize - 1), Len: r.f.sb.blockSize}, true
}

// Extents returns where on the volume the blocks lie that hold bytes
// [off, off+n) of the regular file ino, without the holes.
func (r *Reader) Extents(ctx context.Context, ino vfs.Ino, off, n int64) ([]vfs.Extent, error) {
	if err := r.f.begin(ctx); err != nil {
		return nil, err
	}
	node, err := r.f.regular(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w", ino, err)
	}
	bs := r.f.sb.blockSize
	off = max(off, 0)
	end := min(node.size(), off+max(min(n, node.size()-off), 0))
	if off >= end {
		return nil, nil
	}
	var all []vfs.Extent
	for at := uint64(off / bs); int64(at)*bs < end && at < endOfFile; {
		m, err := r.f.lookup(ctx, node, at)
		if err != nil {
			return nil, fmt.Errorf("map inode %d: %w", ino, err)
		}
		m.n = min(m.n, uint64((end+bs-1)/bs)-at)
		if !m.hole {
			all = append(all, vfs.Extent{Off: r.f.sb.off(m.start), Len: int64(m.n) * bs})
		}
		at += m.n
	}
	return all, nil
}

// readOnly is a volume that cannot be written.
type readOnly struct{ backend.Volume }

func (readOnly) WriteAt(context.Context, []byte, int64) (int, error) { return 0, syscall.EROFS }
func (readOnly) Discard(context.Context, int64, int64) error         { return syscall.EROFS }
func (readOnly) Sync(context.Context) error                          { return syscall.EROFS }
