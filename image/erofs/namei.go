// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Lookup returns the file that name leads to in the directory dir. It fails
// with fs.ErrNotExist, or syscall.ENOTDIR if dir is something else.
func (f *FS) Lookup(ctx context.Context, dir vfs.Ino, name string) (vfs.Ino, error) {
	n, err := f.lookup(ctx, dir, name)
	if err != nil {
		return 0, fmt.Errorf("look up %.300q in directory %d: %w", name, dir, err)
	}
	return n.ino, nil
}

func (f *FS) lookup(ctx context.Context, dir vfs.Ino, name string) (*node, error) {
	parent, _, err := f.dir(ctx, dir)
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return nil, err
	}
	return f.find(ctx, parent, name)
}

// find returns the file that name leads to in the directory n.
func (f *FS) find(ctx context.Context, n *node, name string) (*node, error) {
	if d := n.draft; d != nil && d.loaded {
		e, ok := d.entries[name]
		if !ok {
			return nil, fs.ErrNotExist
		}
		if e.node == nil {
			e.node = f.known(e.nid, n)
			d.entries[name] = e
		}
		return e.node, nil
	}
	in, err := f.old(ctx, n)
	if err != nil {
		return nil, err
	}
	e, err := f.m.lookup(ctx, in, name)
	if err != nil {
		return nil, err
	}
	return f.known(e.nid, n), nil
}

// ReadDir yields the entries of a directory but for "." and "..", in the order
// of their bytes. What is yielded may be removed meanwhile.
func (f *FS) ReadDir(ctx context.Context, dir vfs.Ino) iter.Seq2[vfs.DirEntry, error] {
	return func(yield func(vfs.DirEntry, error) bool) {
		n, _, err := f.dir(ctx, dir)
		switch {
		case err != nil:
			yield(vfs.DirEntry{}, fmt.Errorf("read directory %d: %w", dir, err))
		case n.draft != nil && n.draft.loaded:
			f.readLoaded(ctx, n, yield)
		default:
			f.readOld(ctx, n, yield)
		}
	}
}

// readOld yields what is on the device, and stays there.
func (f *FS) readOld(ctx context.Context, n *node, yield func(vfs.DirEntry, error) bool) {
	in, err := f.old(ctx, n)
	if err != nil {
		yield(vfs.DirEntry{}, err)
		return
	}
	for e, err := range f.m.dirents(ctx, in) {
		if err != nil {
			yield(vfs.DirEntry{}, err)
			return
		}
		if !yield(vfs.DirEntry{Name: string(e.name), Ino: f.known(e.nid, n).ino, Type: e.kind}, nil) {
			return
		}
	}
}

func (f *FS) readLoaded(ctx context.Context, n *node, yield func(vfs.DirEntry, error) bool) {
	for _, name := range slices.Sorted(maps.Keys(n.draft.entries)) {
		file, err := f.find(ctx, n, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if !yield(vfs.DirEntry{Name: name, Ino: file.ino, Type: n.draft.entries[name].kind}, err) || err != nil {
			return
		}
	}
}

// Create makes a file of the type in a.Mode: a regular file, a directory, a
// FIFO, a socket or a device. It fails with fs.ErrExist if the name is taken.
func (f *FS) Create(ctx context.Context, dir vfs.Ino, name string, a vfs.Attr) (vfs.Ino, error) {
	t := vfs.TypeOf(a.Mode)
	if t == vfs.TypeUnknown || t == vfs.TypeSymlink || a.Major >= 1<<12 || a.Minor >= 1<<20 {
		return 0, fmt.Errorf("create %q of mode %#o, device %d:%d: %w", name, a.Mode, a.Major, a.Minor, syscall.EINVAL)
	}
	d := &draft{}
	switch t {
	case vfs.TypeCharDevice, vfs.TypeBlockDevice:
		d.data = packDevice(a.Major, a.Minor)
	case vfs.TypeDirectory:
		d.loaded, d.entries = true, make(map[string]entry)
	}
	return f.create(ctx, dir, name, a, d)
}

// Symlink makes a symbolic link to target. The type in a.Mode is not looked
// at.
func (f *FS) Symlink(ctx context.Context, dir vfs.Ino, name, target string, a vfs.Attr) (vfs.Ino, error) {
	if len(target) == 0 || len(target) >= blockSize || strings.ContainsRune(target, 0) {
		return 0, fmt.Errorf("create symbolic link %q to %d bytes: %w", name, len(target), syscall.ENAMETOOLONG)
	}
	a.Mode = a.Mode&^syscall.S_IFMT | syscall.S_IFLNK
	return f.create(ctx, dir, name, a, &draft{inode: inode{size: int64(len(target))}, body: []byte(target)})
}

// create gives a new file a name.
func (f *FS) create(ctx context.Context, dir vfs.Ino, name string, a vfs.Attr, d *draft) (vfs.Ino, error) {
	parent, err := f.vacant(ctx, dir, name)
	if err == nil {
		err = f.hold(nodeBytes + entryBytes + int64(len(name)+len(d.body)))
	}
	if err != nil {
		return 0, fmt.Errorf("create %q: %w", name, err)
	}
	d.mode, d.links, d.extended = uint16(a.Mode), 1, true
	d.setAttr(a)
	if d.isDir() {
		d.links = 2
		parent.draft.links++
	}
	n := f.newNode(parent)
	n.draft = d
	f.inodes++
	parent.draft.entries[strings.Clone(name)] = entry{node: n, kind: d.kind()}
	return n.ino, nil
}

// vacant returns the directory dir, loaded, if it has no such name.
func (f *FS) vacant(ctx context.Context, dir vfs.Ino, name string) (*node, error) {
	n, _, err := f.dir(ctx, dir)
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return nil, err
	}
	d, err := f.load(ctx, n)
	if err != nil {
		return nil, err
	}
	if _, ok := d.entries[name]; ok {
		return nil, fs.ErrExist
	}
	return n, nil
}

// Link gives the file ino, which must not be a directory, another name.
func (f *FS) Link(ctx context.Context, dir vfs.Ino, name string, ino vfs.Ino) error {
	if err := f.link(ctx, dir, name, ino); err != nil {
		return fmt.Errorf("link %q to inode %d: %w", name, ino, err)
	}
	return nil
}

func (f *FS) link(ctx context.Context, dir vfs.Ino, name string, ino vfs.Ino) error {
	parent, err := f.vacant(ctx, dir, name)
	if err != nil {
		return err
	}
	n, in, err := f.stat(ctx, ino)
	switch {
	case err != nil:
		return err
	case in.isDir():
		return syscall.EPERM
	case in.links == math.MaxUint32:
		return syscall.EMLINK
	}
	d, err := f.edit(ctx, n)
	if err == nil {
		err = f.hold(entryBytes + int64(len(name)))
	}
	if err != nil {
		return err
	}
	d.links++
	parent.draft.entries[strings.Clone(name)] = entry{node: n, kind: in.kind()}
	return nil
}

// Remove removes a name from the directory dir, and with its last name the
// file. A directory must be empty, or Remove fails with syscall.ENOTEMPTY.
func (f *FS) Remove(ctx context.Context, dir vfs.Ino, name string) error {
	if err := f.remove(ctx, dir, name); err != nil {
		return fmt.Errorf("remove %.300q from directory %d: %w", name, dir, err)
	}
	return nil
}

func (f *FS) remove(ctx context.Context, dir vfs.Ino, name string) error {
	n, err := f.lookup(ctx, dir, name)
	if err != nil {
		return err
	}
	in, err := f.inode(ctx, n)
	if err != nil {
		return err
	}
	parent, err := f.node(dir)
	if err != nil {
		return err
	}
	if in.isDir() {
		return f.removeDir(ctx, parent, name, n, in)
	}
	d, err := f.load(ctx, parent)
	if err != nil {
		return err
	}
	if in.links > 1 {
		left, err := f.edit(ctx, n)
		if err != nil {
			return err
		}
		left.links--
	} else {
		f.drop(n)
	}
	delete(d.entries, name)
	return nil
}

// removeDir removes the directory n, which is called name in parent.
func (f *FS) removeDir(ctx context.Context, parent *node, name string, n *node, in *inode) error {
	if n.ino == rootIno || n == parent {
		return in.corrupt(&f.m.sb, "entries", "%.300q leads back", name)
	}
	empty, err := f.isEmpty(ctx, n)
	if err != nil {
		return err
	}
	if !empty {
		return syscall.ENOTEMPTY
	}
	d, err := f.load(ctx, parent)
	if err != nil {
		return err
	}
	if d.links > 2 {
		d.links--
	}
	delete(d.entries, name)
	f.drop(n)
	return nil
}

func (f *FS) isEmpty(ctx context.Context, n *node) (bool, error) {
	if n.draft != nil && n.draft.loaded {
		return len(n.draft.entries) == 0, nil
	}
	in, err := f.old(ctx, n)
	if err != nil {
		return false, err
	}
	for _, err := range f.m.dirents(ctx, in) {
		return false, err
	}
	return true, nil
}
