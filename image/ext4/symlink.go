// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"bytes"
	"context"
	"fmt"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// isFast reports whether the symbolic link n has its target in the inode:
// such a link has no blocks but that of its extended attributes.
func (f *FS) isFast(n inode) bool {
	var acl uint64
	if n.aclBlock() != 0 {
		acl = uint64(f.sb.blockSize) / 512
	}
	return n.sectors() == acl
}

// putTarget stores the target of the new symbolic link n.
func (f *FS) putTarget(ctx context.Context, n inode, target string) error {
	n.putSize(int64(len(target)))
	if len(target) < inBlockLen {
		copy(n.raw[inBlock:], target)
		return nil
	}
	f.initExtents(n)
	b, err := f.allocMeta(ctx)
	if err != nil {
		return err
	}
	copy(b.data, target)
	return f.appendExtent(ctx, n, 0, run{b.no, 1}) // into an empty root, which has room
}

// Readlink returns the target of the symbolic link ino.
func (f *FS) Readlink(ctx context.Context, ino vfs.Ino) (string, error) {
	if err := f.begin(ctx); err != nil {
		return "", err
	}
	n, err := f.inode(ctx, ino)
	if err != nil {
		return "", err
	}
	if n.kind() != syscall.S_IFLNK {
		return "", fmt.Errorf("read link of inode %d: %w", ino, syscall.EINVAL)
	}
	raw := n.raw[inBlock : inBlock+inBlockLen]
	if !f.isFast(n) {
		m, err := f.lookup(ctx, n, 0)
		if err != nil {
			return "", err
		}
		if m.hole {
			return "", f.inodeCorrupt(n, "i_block", "the target of the link is missing")
		}
		b, err := f.cache.get(ctx, m.start)
		if err != nil {
			return "", err
		}
		raw = b.data
	}
	if n.size() == 0 || n.size() >= int64(len(raw)) || bytes.IndexByte(raw[:n.size()], 0) >= 0 {
		return "", f.inodeCorrupt(n, "i_size", "%d of a symbolic link", n.size())
	}
	return string(raw[:n.size()]), nil
}
