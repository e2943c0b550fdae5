// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A Reader is a file system that nobody changes. Like an FS it is not safe for
// concurrent use. After an error it may be used on. The numbers of its files
// have nothing to do with those of an FS.
type Reader struct{ m *image }

var _ vfs.Reader = (*Reader)(nil)

// readerBlocks bounds the metadata that a Reader keeps (4 MiB): it is one of
// many, and what it reads is cached below it.
const readerBlocks = 4 << 20 / blockSize

// NewReader opens the file system on dev, which stays the caller's.
func NewReader(ctx context.Context, dev backend.Volume) (*Reader, error) {
	m, err := openImage(ctx, dev, readerBlocks)
	if err != nil {
		return nil, fmt.Errorf("open EROFS: %w", err)
	}
	return &Reader{m}, nil
}

// The number of a file is that of its inode, and one: nids count from 0.
func inoOf(nid uint64) vfs.Ino { return vfs.Ino(nid + 1) }

func (r *Reader) inode(ctx context.Context, ino vfs.Ino, kinds ...vfs.Type) (inode, error) {
	n, err := r.m.inode(ctx, uint64(ino)-1)
	if err != nil || len(kinds) == 0 || n.kind() == kinds[0] {
		return n, err
	}
	if kinds[0] == vfs.TypeDirectory {
		return n, syscall.ENOTDIR
	}
	return n, syscall.EINVAL
}

// Root returns the root directory.
func (r *Reader) Root() vfs.Ino { return inoOf(r.m.sb.root) }

// ReadDir yields the entries of a directory but for "." and "..".
func (r *Reader) ReadDir(ctx context.Context, dir vfs.Ino) iter.Seq2[vfs.DirEntry, error] {
	return func(yield func(vfs.DirEntry, error) bool) {
		n, err := r.inode(ctx, dir, vfs.TypeDirectory)
		if err != nil {
			yield(vfs.DirEntry{}, fmt.Errorf("read directory %d: %w", dir, err))
			return
		}
		for e, err := range r.m.dirents(ctx, &n) {
			if !yield(vfs.DirEntry{Name: string(e.name), Ino: inoOf(e.nid), Type: e.kind}, err) || err != nil {
				return
			}
		}
	}
}

// Lookup returns the file that name leads to in the directory dir.
func (r *Reader) Lookup(ctx context.Context, dir vfs.Ino, name string) (vfs.Ino, error) {
	n, err := r.inode(ctx, dir, vfs.TypeDirectory)
	if err == nil {
		err = checkName(name)
	}
	var e dirent
	if err == nil {
		e, err = r.m.lookup(ctx, &n, name)
	}
	if err != nil {
		return 0, fmt.Errorf("look up %.300q in directory %d: %w", name, dir, err)
	}
	return inoOf(e.nid), nil
}

// Readlink returns the target of the symbolic link ino.
func (r *Reader) Readlink(ctx context.Context, ino vfs.Ino) (string, error) {
	n, err := r.inode(ctx, ino, vfs.TypeSymlink)
	if err != nil {
		return "", fmt.Errorf("read link of inode %d: %w", ino, err)
	}
	return r.m.readlink(ctx, &n)
}

// Stat describes the file ino.
func (r *Reader) Stat(ctx context.Context, ino vfs.Ino) (vfs.Inode, error) {
	n, err := r.inode(ctx, ino)
	if err != nil {
		return vfs.Inode{}, err
	}
	return vfs.Inode{Ino: ino, Attr: n.attr(), Links: n.links, Size: n.size}, nil
}

// Xattrs returns the extended attributes of the file ino by their full names.
func (r *Reader) Xattrs(ctx context.Context, ino vfs.Ino) (map[string][]byte, error) {
	n, err := r.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	return r.m.xattrs(ctx, &n)
}

// ReadAt reads the content of the regular file ino under the io.ReaderAt
// contract.
func (r *Reader) ReadAt(ctx context.Context, ino vfs.Ino, p []byte, off int64) (int, error) {
	n, err := r.inode(ctx, ino, vfs.TypeRegular)
	if err != nil {
		return 0, fmt.Errorf("read inode %d: %w", ino, err)
	}
	k, err := r.m.readAt(ctx, &n, p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read inode %d: %w", ino, err)
	}
	return k, err
}

// Extents returns where on the volume the blocks lie that hold bytes
// [off, off+n) of the regular file ino, without the holes.
func (r *Reader) Extents(ctx context.Context, ino vfs.Ino, off, n int64) ([]vfs.Extent, error) {
	in, err := r.inode(ctx, ino, vfs.TypeRegular)
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w", ino, err)
	}
	all, err := r.m.extents(ctx, &in, off, n)
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w", ino, err)
	}
	return all, nil
}

// InodeBlock returns the block that holds the inode ino, without reading it.
func (r *Reader) InodeBlock(ino vfs.Ino) (vfs.Extent, bool) {
	off, ok := r.m.sb.inodeOff(uint64(ino) - 1)
	if !ok {
		return vfs.Extent{}, false
	}
	return vfs.Extent{Off: off &^ (blockSize - 1), Len: blockSize}, true
}

// readlink returns the target of the symbolic link n.
func (m *image) readlink(ctx context.Context, n *inode) (string, error) {
	if n.size == 0 || n.size >= blockSize {
		return "", n.corrupt(&m.sb, "i_size", "%d of a symbolic link", n.size)
	}
	r, err := m.piece(ctx, n, 0)
	if err != nil {
		return "", err
	}
	if r.hole {
		return "", n.corrupt(&m.sb, "i_u", "the target of the link is missing")
	}
	p, err := m.read(ctx, r.off, n.size)
	if err != nil {
		return "", fmt.Errorf("read link of inode %d: %w", m.sb.nid(n.off), err)
	}
	if i := bytes.IndexByte(p, 0); i >= 0 {
		return "", n.corrupt(&m.sb, "i_size", "%d of a symbolic link with a zero at %d", n.size, i)
	}
	return string(p), nil
}
