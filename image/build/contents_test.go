// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"bytes"
	"context"
	"iter"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A reader reads files of a disk.
type reader interface {
	ReadDir(ctx context.Context, dir vfs.Ino) iter.Seq2[vfs.DirEntry, error]
	Stat(ctx context.Context, ino vfs.Ino) (vfs.Inode, error)
	ReadAt(ctx context.Context, ino vfs.Ino, p []byte, off int64) (int, error)
}

// contents returns the content of the regular files of a disk by their paths,
// and asserts that their last blocks end in zeros, which mmap shows.
func contents(t testing.TB, disk backend.Volume) map[string]string {
	t.Helper()
	var r reader
	root := ext4.RootIno
	r, err := ext4.NewReader(t.Context(), disk)
	if err != nil {
		e, err := erofs.NewReader(t.Context(), disk)
		if err != nil {
			t.Fatal(err)
		}
		r, root = e, e.Root()
	}
	all := make(map[string]string)
	var walk func(dir vfs.Ino, path string)
	walk = func(dir vfs.Ino, path string) {
		for e, err := range r.ReadDir(t.Context(), dir) {
			if err != nil {
				t.Fatal(err)
			}
			switch name := path + e.Name; e.Type {
			case vfs.TypeDirectory:
				walk(e.Ino, name+"/")
			case vfs.TypeRegular:
				all[name] = content(t, r, disk, e.Ino)
			}
		}
	}
	walk(root, "")
	return all
}

func content(t testing.TB, r reader, disk backend.Volume, ino vfs.Ino) string {
	t.Helper()
	st, err := r.Stat(t.Context(), ino)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, st.Size)
	if n, err := r.ReadAt(t.Context(), ino, p, 0); n < len(p) {
		t.Fatalf("read %d bytes: %v", len(p), err)
	}
	block, in := make([]byte, 4096), st.Size%4096
	off := offset(t, r, ino, st.Size-in)
	if in == 0 || off < 0 {
		return string(p)
	}
	if _, err := disk.ReadAt(t.Context(), block, off); err != nil {
		t.Fatal(err)
	}
	if len(bytes.Trim(block[in:], "\x00")) > 0 {
		t.Errorf("behind the end of a file of %d bytes is %.50q", st.Size, block[in:])
	}
	return string(p)
}

// offset returns where on the disk the block with byte off of a file is, -1 if
// it has none of its own.
func offset(t testing.TB, r reader, ino vfs.Ino, off int64) int64 {
	t.Helper()
	var offs []int64
	var err error
	switch r := r.(type) {
	case *ext4.Reader:
		all, xerr := r.Extents(t.Context(), ino, off, 1)
		for _, e := range all {
			offs = append(offs, e.Off)
		}
		err = xerr
	case *erofs.Reader:
		all, xerr := r.Extents(t.Context(), ino, off, 1)
		for _, e := range all {
			if at, _ := r.InodeBlock(ino); at.Off != e.Off { // else it is with the inode, and mmap shows a copy
				offs = append(offs, e.Off)
			}
		}
		err = xerr
	}
	if err != nil {
		t.Fatal(err)
	}
	return append(offs, -1)[0]
}
