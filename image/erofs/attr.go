// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Stat describes the file ino. A directory has the size that it had with the
// last Sync.
func (f *FS) Stat(ctx context.Context, ino vfs.Ino) (vfs.Inode, error) {
	_, in, err := f.stat(ctx, ino)
	if err != nil {
		return vfs.Inode{}, err
	}
	return vfs.Inode{Ino: ino, Attr: in.attr(), Links: in.links, Size: in.size}, nil
}

// sorted returns the names in the directory d as they are written.
func (d *draft) sorted() []string {
	names := slices.AppendSeq(make([]string, 0, len(d.entries)+2), maps.Keys(d.entries))
	names = append(names, ".", "..")
	slices.Sort(names)
	return names
}

// Readlink returns the target of the symbolic link ino.
func (f *FS) Readlink(ctx context.Context, ino vfs.Ino) (string, error) {
	n, in, err := f.stat(ctx, ino)
	if err != nil {
		return "", err
	}
	if in.kind() != vfs.TypeSymlink {
		return "", fmt.Errorf("read link of inode %d: %w", ino, syscall.EINVAL)
	}
	if n.draft != nil && len(n.draft.body) > 0 {
		return string(n.draft.body), nil
	}
	if in, err = f.old(ctx, n); err != nil {
		return "", err
	}
	return f.m.readlink(ctx, in)
}

// SetAttr sets all attributes of the file ino but its type and, of a device,
// its number. Of the times it keeps the Mtime.
func (f *FS) SetAttr(ctx context.Context, ino vfs.Ino, a vfs.Attr) error {
	n, in, err := f.stat(ctx, ino)
	if err != nil {
		return err
	}
	to := *in
	if to.setAttr(a); to == *in {
		return nil
	}
	d, err := f.edit(ctx, n)
	if err != nil {
		return fmt.Errorf("set attributes of inode %d: %w", ino, err)
	}
	d.setAttr(a)
	return nil
}

// Xattrs returns the extended attributes of the file ino by their full names,
// their values as getxattr returns them.
func (f *FS) Xattrs(ctx context.Context, ino vfs.Ino) (map[string][]byte, error) {
	n, in, err := f.stat(ctx, ino)
	if err != nil {
		return nil, err
	}
	if n.draft != nil {
		return f.m.parseXattrs(ctx, in, n.draft.xattrs)
	}
	return f.m.xattrs(ctx, in)
}

// SetXattrs makes m the extended attributes of the file ino, by their full
// names and with values as setxattr takes them. It fails with
// syscall.EOPNOTSUPP for names outside the known name spaces, and with
// syscall.ENOSPC if they do not fit; nothing is changed then.
func (f *FS) SetXattrs(ctx context.Context, ino vfs.Ino, m map[string][]byte) error {
	n, in, err := f.stat(ctx, ino)
	if err != nil {
		return err
	}
	body, err := packXattrs(m)
	if err != nil {
		return fmt.Errorf("set attributes of inode %d: %w", ino, err)
	}
	if len(body) == 0 && in.xattrs == 0 {
		return nil
	}
	d, err := f.edit(ctx, n)
	if err == nil && !bytes.Equal(d.xattrs, body) {
		err = f.hold(int64(len(body)))
	}
	if err != nil {
		return fmt.Errorf("set attributes of inode %d: %w", ino, err)
	}
	d.xattrs, d.inode.xattrs = body, int32(len(body))
	return nil
}
