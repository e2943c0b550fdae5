// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Lookup returns the inode that name leads to in the directory dir. It fails
// with fs.ErrNotExist, or syscall.ENOTDIR if dir is something else.
func (f *FS) Lookup(ctx context.Context, dir vfs.Ino, name string) (vfs.Ino, error) {
	if err := f.begin(ctx); err != nil {
		return 0, err
	}
	n, err := f.dir(ctx, dir)
	if err != nil {
		return 0, fmt.Errorf("look up %q: %w", name, err)
	}
	s, err := f.find(ctx, n, name)
	if err != nil {
		return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, err)
	}
	return s.entry().ino(), nil
}

// Create makes a file of the type in a.Mode: a regular file, a directory, a
// FIFO, a socket or a device. It fails with fs.ErrExist if the name is taken.
func (f *FS) Create(ctx context.Context, dir vfs.Ino, name string, a vfs.Attr) (vfs.Ino, error) {
	t := vfs.TypeOf(a.Mode)
	if t == vfs.TypeUnknown || t == vfs.TypeSymlink || a.Major >= 1<<12 || a.Minor >= 1<<20 {
		return 0, fmt.Errorf("create %q of mode %#o, device %d:%d: %w", name, a.Mode, a.Major, a.Minor, syscall.EINVAL)
	}
	return f.create(ctx, dir, name, a, func(parent, n inode) error {
		switch t {
		case vfs.TypeRegular:
			f.initExtents(n)
		case vfs.TypeCharDevice, vfs.TypeBlockDevice:
			n.putDevice(a.Major, a.Minor)
		case vfs.TypeDirectory:
			f.initExtents(n)
			return f.initDir(ctx, n, parent.no)
		}
		return nil
	})
}

// Symlink makes a symbolic link to target. The type in a.Mode is not looked
// at.
func (f *FS) Symlink(ctx context.Context, dir vfs.Ino, name, target string, a vfs.Attr) (vfs.Ino, error) {
	if len(target) == 0 || int64(len(target)) >= f.sb.blockSize || strings.ContainsRune(target, 0) {
		return 0, fmt.Errorf("create symbolic link %q to %d bytes: %w", name, len(target), syscall.ENAMETOOLONG)
	}
	a.Mode = a.Mode&^syscall.S_IFMT | syscall.S_IFLNK
	return f.create(ctx, dir, name, a, func(_, n inode) error { return f.putTarget(ctx, n, target) })
}

// create makes an inode, which init fills in, and gives it a name.
func (f *FS) create(ctx context.Context, dir vfs.Ino, name string, a vfs.Attr, init func(parent, n inode) error) (vfs.Ino, error) {
	if err := f.begin(ctx); err != nil {
		return 0, err
	}
	parent, err := f.vacant(ctx, dir, name)
	if err != nil {
		return 0, fmt.Errorf("create %q: %w", name, err)
	}
	t := vfs.TypeOf(a.Mode)
	if t == vfs.TypeDirectory && !f.canAddLink(parent) {
		return 0, fmt.Errorf("create %q: %w", name, syscall.EMLINK)
	}
	n, err := f.allocInode(ctx, t == vfs.TypeDirectory)
	if err != nil {
		return 0, fmt.Errorf("create %q: %w", name, err)
	}
	if len(n.raw) > inodeBase {
		n.put16(inExtra, uint16(f.sb.extra))
	}
	n.putAttr(a)
	n.put16(inLinks, 1)
	err = init(parent, n)
	if err == nil {
		err = f.insert(ctx, parent, name, n.no, t)
	}
	if err != nil {
		return 0, fmt.Errorf("create %q: %w", name, errors.Join(err, f.freeFile(ctx, n)))
	}
	if t == vfs.TypeDirectory {
		n.put16(inLinks, 2)
		f.addLink(parent)
	}
	return n.no, nil
}

// vacant returns the directory dir if it has no such name.
func (f *FS) vacant(ctx context.Context, dir vfs.Ino, name string) (inode, error) {
	if err := checkName(name); err != nil {
		return inode{}, err
	}
	n, err := f.dir(ctx, dir)
	if err != nil {
		return inode{}, err
	}
	_, err = f.find(ctx, n, name)
	switch {
	case err == nil:
		return inode{}, fs.ErrExist
	case !errors.Is(err, fs.ErrNotExist):
		return inode{}, err
	}
	return n, nil
}

func checkName(name string) error {
	switch {
	case len(name) > maxName:
		return syscall.ENAMETOOLONG
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	}
	return nil
}

// canAddLink reports whether the directory n can have another directory.
func (f *FS) canAddLink(n inode) bool {
	return n.links() < maxLinks-1 || f.sb.roCompat&roDirNlink != 0
}

// addLink counts a directory in the directory n. Behind the limit the count is
// 1, which stands for many.
func (f *FS) addLink(n inode) {
	switch links := n.links(); {
	case links == 1:
	case links >= maxLinks-1:
		n.put16(inLinks, 1)
	default:
		n.put16(inLinks, uint16(links+1))
	}
}

// Link gives the file ino, which must not be a directory, another name.
func (f *FS) Link(ctx context.Context, dir vfs.Ino, name string, ino vfs.Ino) error {
	if err := f.begin(ctx); err != nil {
		return err
	}
	parent, err := f.vacant(ctx, dir, name)
	if err != nil {
		return fmt.Errorf("link %q: %w", name, err)
	}
	n, err := f.inode(ctx, ino)
	switch {
	case err != nil:
	case n.isDir():
		err = syscall.EPERM
	case n.links() >= maxLinks:
		err = syscall.EMLINK
	default:
		err = f.insert(ctx, parent, name, ino, vfs.TypeOf(n.mode()))
	}
	if err != nil {
		return fmt.Errorf("link %q to inode %d: %w", name, ino, err)
	}
	n.put16(inLinks, uint16(n.links()+1))
	return nil
}

// Remove removes a name from the directory dir, and with its last name the
// file. A directory must be empty, or Remove fails with syscall.ENOTEMPTY.
func (f *FS) Remove(ctx context.Context, dir vfs.Ino, name string) error {
	if err := f.begin(ctx); err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return fmt.Errorf("remove %q: %w", name, err)
	}
	if err := f.remove(ctx, dir, name); err != nil {
		return fmt.Errorf("remove %q from directory %d: %w", name, dir, err)
	}
	return nil
}

func (f *FS) remove(ctx context.Context, dir vfs.Ino, name string) error {
	parent, err := f.dir(ctx, dir)
	if err != nil {
		return err
	}
	s, err := f.find(ctx, parent, name)
	if err != nil {
		return err
	}
	n, err := f.inode(ctx, s.entry().ino())
	if err != nil {
		return err
	}
	if n.isDir() {
		return f.removeDir(ctx, parent, s, n.no)
	}
	s.remove()
	if n.links() > 1 {
		n.put16(inLinks, uint16(n.links()-1))
		return nil
	}
	return f.freeFile(ctx, n)
}

// removeDir removes the directory no, whose name is at s in parent.
func (f *FS) removeDir(ctx context.Context, parent inode, s slot, no vfs.Ino) error {
	n, err := f.dir(ctx, no)
	if err != nil {
		return err
	}
	if no == RootIno || no == parent.no {
		return f.dirCorrupt(parent, s.blk, fmt.Errorf("%w: inode %d below itself", errEntry, no))
	}
	empty, err := f.isEmpty(ctx, n)
	if err != nil {
		return err
	}
	if !empty {
		return syscall.ENOTEMPTY
	}
	s.remove()
	if links := parent.links(); links > 2 {
		parent.put16(inLinks, uint16(links-1))
	}
	return f.freeFile(ctx, n)
}

// freeFile frees n and all it has.
func (f *FS) freeFile(ctx context.Context, n inode) error {
	if f.hasBlocks(n) {
		if err := f.truncate(ctx, n); err != nil {
			return err
		}
	}
	if err := f.dropACLBlock(ctx, n); err != nil {
		return err
	}
	return f.freeInode(ctx, n)
}

// hasBlocks reports whether i_block of n maps blocks.
func (f *FS) hasBlocks(n inode) bool {
	switch vfs.TypeOf(n.mode()) {
	case vfs.TypeRegular, vfs.TypeDirectory:
		return true
	case vfs.TypeSymlink:
		return !f.isFast(n)
	}
	return false
}
