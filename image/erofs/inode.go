// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// An inode describes a file and where its content is.
type inode struct {
	off      int64  // on the device
	size     int64  // bytes
	mtime    int64  // seconds
	data     uint32 // i_u
	nsec     uint32
	uid, gid uint32
	links    uint32
	xattrs   int32 // bytes of attributes behind the inode
	mode     uint16
	layout   layout
	extended bool
}

// inode reads the inode nid.
func (m *image) inode(ctx context.Context, nid uint64) (inode, error) {
	off, ok := m.sb.inodeOff(nid)
	if !ok {
		return inode{}, corrupt(fmt.Sprintf("inode %d", nid), m.sb.meta, "nid", "outside of the %d blocks", m.sb.blocks)
	}
	p, err := m.read(ctx, off, compactSize)
	if err == nil && p[inFormat]&1 != 0 {
		p, err = m.read(ctx, off, extendedSize)
	}
	if err != nil {
		return inode{}, fmt.Errorf("read inode %d: %w", nid, err)
	}
	return m.sb.parseInode(p, off)
}

// parseInode parses the inode p, which lies at off.
func (s *superblock) parseInode(p []byte, off int64) (inode, error) {
	format := le.Uint16(p[inFormat:])
	n := inode{
		off: off, layout: layout(format >> 1 & 7), extended: format&1 != 0,
		mode: le.Uint16(p[inMode:]), data: le.Uint32(p[inData:]),
	}
	if words := le.Uint16(p[inXattrs:]); words > 0 {
		n.xattrs = xattrHead + (int32(words)-1)*4
	}
	if n.extended {
		n.uid, n.gid, n.links = le.Uint32(p[inUID:]), le.Uint32(p[inGID:]), le.Uint32(p[inLinks4:])
		n.size = int64(le.Uint64(p[inSize:]))
		n.mtime, n.nsec = int64(le.Uint64(p[inMtime:])), le.Uint32(p[inNsec:])
	} else {
		n.uid, n.gid = uint32(le.Uint16(p[inUID16:])), uint32(le.Uint16(p[inGID16:]))
		n.links, n.size = uint32(le.Uint16(p[inLinks:])), int64(le.Uint32(p[inSize:]))
		n.mtime, n.nsec = s.time, s.timeNsec
	}
	n.nsec = min(n.nsec, 999_999_999)
	if format&^0xf != 0 {
		return n, n.corrupt(s, "i_format", "%#x", format)
	}
	return n, n.check(s)
}

func (n *inode) corrupt(s *superblock, field, format string, args ...any) error {
	return corrupt(fmt.Sprintf("inode %d", s.nid(n.off)), n.off, field, format, args...)
}

// check reports content that cannot be where n says.
func (n *inode) check(s *superblock) error {
	switch {
	case n.kind() == vfs.TypeUnknown:
		return n.corrupt(s, "i_mode", "%#o", n.mode)
	case n.size < 0:
		return n.corrupt(s, "i_size", "%d", n.size)
	case !n.hasContent():
		return nil
	}
	first, blocks := int64(n.data), (n.size+blockSize-1)>>blockBits
	switch n.layout {
	case layoutPlain:
	case layoutInline:
		blocks = max(blocks-1, 0)
		if at := (n.off + n.head()) & (blockSize - 1); at+n.tail() > blockSize {
			return n.corrupt(s, "i_size", "%d, of which the end would cross blocks", n.size)
		}
		if n.off+n.head()+n.tail() > s.end() {
			return n.corrupt(s, "i_size", "%d behind an inode at the end", n.size)
		}
	case layoutChunks:
		return n.checkChunks(s)
	case layoutCompressed, layoutCompact:
		return fmt.Errorf("inode %d: compressed files of EROFS: %w", s.nid(n.off), errors.ErrUnsupported)
	default:
		return n.corrupt(s, "i_format", "layout %d", n.layout)
	}
	if blocks > 0 && (first > s.blocks || blocks > s.blocks-first) {
		return n.corrupt(s, "i_size", "%d bytes from block %d of %d", n.size, first, s.blocks)
	}
	return nil
}

// checkChunks reports a table of chunks that cannot be.
func (n *inode) checkChunks(s *superblock) error {
	if n.data&^chunkKnown != 0 {
		return n.corrupt(s, "i_u", "chunks of form %#x", n.data)
	}
	at, unit := n.chunkTable()
	if room := s.end() - at; room < 0 || n.chunks() > room/unit {
		return n.corrupt(s, "i_size", "%d bytes in chunks of %d", n.size, n.chunkSize())
	}
	return nil
}

// chunkTable returns where the table of chunks begins, and the size of its
// entries.
func (n *inode) chunkTable() (off, unit int64) {
	unit = 4
	if n.data&chunkIndexes != 0 {
		unit = 8
	}
	return align(n.off+n.head(), unit), unit
}

// chunkSize returns the size of a chunk in bytes.
func (n *inode) chunkSize() int64 { return 1 << (blockBits + n.data&chunkBits) }

func (n *inode) chunks() int64 {
	return n.size>>(blockBits+n.data&chunkBits) + min(n.size&(n.chunkSize()-1), 1)
}

// head returns the size of the inode with its attributes.
func (n *inode) head() int64 {
	if n.extended {
		return extendedSize + int64(n.xattrs)
	}
	return compactSize + int64(n.xattrs)
}

// tail returns how many bytes of content lie behind an inode that has them
// there.
func (n *inode) tail() int64 {
	if n.size == 0 {
		return 0
	}
	return (n.size-1)&(blockSize-1) + 1
}

// body returns where the content or the table of chunks lies that is behind
// the inode, and the size of it.
func (n *inode) body() (off, size int64) {
	switch off = n.off + n.head(); {
	case !n.hasContent():
		return off, 0
	case n.layout == layoutInline:
		return off, n.tail()
	case n.layout == layoutChunks:
		at, unit := n.chunkTable()
		return at, n.chunks() * unit
	}
	return off, 0
}

func (n *inode) kind() vfs.Type { return vfs.TypeOf(uint32(n.mode)) }

func (n *inode) isDir() bool { return n.kind() == vfs.TypeDirectory }

func (n *inode) hasContent() bool {
	switch n.kind() {
	case vfs.TypeRegular, vfs.TypeDirectory, vfs.TypeSymlink:
		return true
	}
	return false
}

func (n *inode) isDevice() bool {
	return n.kind() == vfs.TypeCharDevice || n.kind() == vfs.TypeBlockDevice
}

// attr returns the attributes of n. EROFS has but one time.
func (n *inode) attr() vfs.Attr {
	t := time.Unix(n.mtime, int64(n.nsec)).UTC()
	a := vfs.Attr{Mode: uint32(n.mode), UID: n.uid, GID: n.gid, Atime: t, Mtime: t, Ctime: t}
	if n.isDevice() {
		a.Major, a.Minor = n.data>>8&0xfff, n.data&0xff|n.data>>12&0xfff00
	}
	return a
}

// setAttr sets all but the type and the device.
func (n *inode) setAttr(a vfs.Attr) {
	n.mode = n.mode&syscall.S_IFMT | uint16(a.Mode)&^syscall.S_IFMT
	n.uid, n.gid = a.UID, a.GID
	n.mtime, n.nsec = 0, 0
	if !a.Mtime.IsZero() {
		n.mtime, n.nsec = a.Mtime.Unix(), uint32(a.Mtime.Nanosecond())
	}
}

// packDevice packs a device number as the kernel does.
func packDevice(major, minor uint32) uint32 { return minor&0xff | major<<8 | minor&^0xff<<12 }

// compactable reports whether a compact inode can say all of n.
func (n *inode) compactable(s *superblock) bool {
	return n.uid <= math.MaxUint16 && n.gid <= math.MaxUint16 && n.links <= math.MaxUint16 &&
		n.size <= math.MaxUint32 && n.mtime == s.time && n.nsec == s.timeNsec
}

// put stores n, without what follows it, at the beginning of p.
func (n *inode) put(p []byte, nid uint64) {
	le.PutUint16(p[inFormat:], uint16(n.layout)<<1)
	if n.xattrs > 0 {
		le.PutUint16(p[inXattrs:], uint16((n.xattrs-xattrHead)/4+1))
	}
	le.PutUint16(p[inMode:], n.mode)
	le.PutUint32(p[inData:], n.data)
	le.PutUint32(p[inIno:], uint32(nid))
	if !n.extended {
		le.PutUint16(p[inLinks:], uint16(n.links))
		le.PutUint32(p[inSize:], uint32(n.size))
		le.PutUint16(p[inUID16:], uint16(n.uid))
		le.PutUint16(p[inGID16:], uint16(n.gid))
		return
	}
	p[inFormat] |= 1
	le.PutUint64(p[inSize:], uint64(n.size))
	le.PutUint32(p[inUID:], n.uid)
	le.PutUint32(p[inGID:], n.gid)
	le.PutUint64(p[inMtime:], uint64(n.mtime))
	le.PutUint32(p[inNsec:], n.nsec)
	le.PutUint32(p[inLinks4:], n.links)
}
