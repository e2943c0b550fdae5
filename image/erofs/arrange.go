// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"fmt"
	"math"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A plan says where a file is being written.
type plan struct {
	move   bool     // to a new place, as a new file does
	off    int64    // of the inode
	blocks int64    // bytes of the content, from its beginning, that go into blocks
	names  []string // of a directory that is loaded, as they are written
	counts []int    // of the names in each block
}

// arrange finds a place for all files in changed, in their order.
func (f *FS) arrange(changed []*node) error {
	s := slots{f: f}
	for _, n := range changed {
		d := n.draft
		d.plan.off = d.off
		if d.loaded {
			d.plan.names = d.sorted()
			d.plan.counts, d.size = packDirents(d.plan.names)
		}
		if err := f.arrangeBody(d); err != nil {
			return err
		}
		if !d.plan.move {
			continue
		}
		off, err := s.take(d.head()+d.gap(), d.behind(), d.layout == layoutInline)
		if err != nil {
			return err
		}
		if n.ino == rootIno && f.m.sb.nid(off) > math.MaxUint16 {
			return fmt.Errorf("the root directory outgrew its place: %w", syscall.ENOSPC)
		}
		d.plan.off = off
	}
	return nil
}

// arrangeBody decides where the content goes that is in memory: behind the
// inode if it fits there, or into blocks. A directory fills blocks, and only
// the rest is to fit.
func (f *FS) arrangeBody(d *draft) error {
	if !d.loaded && (!d.isWhole() || d.size == 0) {
		return nil
	}
	rest := d.size & (blockSize - 1)
	d.layout, d.plan.blocks = layoutInline, d.size-rest
	if rest == 0 || !d.hasRoom(rest) {
		d.layout, d.plan.blocks = layoutPlain, d.size
	}
	d.data = 0
	if d.plan.blocks == 0 {
		return nil
	}
	no, err := f.take(align(d.plan.blocks, blockSize) >> blockBits)
	d.data = uint32(no)
	return err
}

// hasRoom reports whether n bytes can lie behind the inode.
func (d *draft) hasRoom(n int64) bool {
	if d.plan.move {
		return d.head()+n <= blockSize
	}
	return d.head()+n <= d.span && (d.off+d.head())&(blockSize-1)+n <= blockSize
}

// behind returns the size of what is written behind the attributes of d.
func (d *draft) behind() int64 {
	if d.plan.blocks > 0 || d.loaded {
		return d.size - d.plan.blocks
	}
	return int64(len(d.body))
}

// take returns the first of n blocks that are used from now on.
func (f *FS) take(n int64) (no int64, err error) {
	if n > f.m.sb.limit()-f.next {
		return 0, fmt.Errorf("%d blocks behind %d of a device of %d bytes: %w", n, f.next, f.m.sb.device, syscall.ENOSPC)
	}
	no = f.next
	f.next += n
	return no, nil
}

// Slots are blocks with inodes that have room for more. Small inodes fill what
// large ones leave.
type slots struct {
	f    *FS
	free []int64 // bytes on the device, each the end of what is used of its block
}

const maxSlots = 16

// take returns a place for head bytes and body bytes behind them. A body that
// must not cross blocks is whole.
func (s *slots) take(head, body int64, whole bool) (int64, error) {
	n := align(head+body, slotSize)
	for i, off := range s.free {
		if off&(blockSize-1)+n <= blockSize {
			s.use(i, off+n)
			return off, nil
		}
	}
	skip := int64(0)
	if rest := head & (blockSize - 1); whole && rest+body > blockSize {
		skip = align(blockSize-rest, slotSize)
		if (skip+head)&(blockSize-1)+body > blockSize {
			return 0, fmt.Errorf("an inode with %d bytes of attributes and %d of content: %w", head, body, syscall.ENOSPC)
		}
	}
	no, err := s.f.take(align(skip+n, blockSize) >> blockBits)
	if err != nil {
		return 0, err
	}
	off := no<<blockBits + skip
	s.free = append(s.free, 0)
	s.use(len(s.free)-1, off+n)
	return off, nil
}

// use notes that slot i is used up to end.
func (s *slots) use(i int, end int64) {
	s.free[i] = end
	if end&(blockSize-1) == 0 {
		s.free = append(s.free[:i], s.free[i+1:]...)
	} else if len(s.free) > maxSlots {
		s.free = s.free[1:]
	}
}

// nid returns the name of n in the file system that is being written.
func (f *FS) nid(n *node) uint64 {
	if n.draft != nil && n.draft.plan.move {
		return f.m.sb.nid(n.draft.plan.off)
	}
	return n.nid
}

// dirents returns the entries of names in the directory n.
func (f *FS) dirents(n *node, names []string) []dirent {
	all := make([]dirent, len(names))
	for i, name := range names {
		e := n.draft.entries[name]
		all[i] = dirent{name: []byte(name), nid: e.nid, kind: e.kind}
		file := e.node
		switch name {
		case ".":
			file, all[i].kind = n, vfs.TypeDirectory
		case "..":
			file, all[i].kind = n.parent, vfs.TypeDirectory
		}
		if file == nil {
			file = f.placed[e.nid]
		}
		if file != nil {
			all[i].nid = f.nid(file)
		}
	}
	return all
}
