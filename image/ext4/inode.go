// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// An inode. Offsets of the fields in use; they are durable. Fields from 0x80
// exist in inodes larger than 128 bytes, as far as extra isize reaches.
//
//	0x00 u16 mode         0x02 u16 uid, low      0x04 u32 size, low
//	0x08 i32 atime        0x0c i32 ctime         0x10 i32 mtime
//	0x14 u32 dtime        0x18 u16 gid, low      0x1a u16 links
//	0x1c u32 blocks, low, of 512 bytes           0x20 u32 flags
//	0x28 [60] extent root, fast symbolic link or device number
//	0x68 u32 attribute block, low                0x6c u32 size, high
//	0x74 u16 blocks, high 0x76 u16 attribute block, high
//	0x78 u16 uid, high    0x7a u16 gid, high
//	0x80 u16 extra isize  0x84, 0x88, 0x8c u32 ctime, mtime, atime, extra
const (
	inodeBase = 128

	inMode     = 0x00
	inUID      = 0x02
	inSize     = 0x04
	inAtime    = 0x08
	inCtime    = 0x0c
	inMtime    = 0x10
	inGID      = 0x18
	inLinks    = 0x1a
	inBlocks   = 0x1c
	inFlags    = 0x20
	inBlock    = 0x28
	inBlockLen = 60
	inACL      = 0x68
	inSizeHi   = 0x6c
	inBlocksHi = 0x74
	inACLHi    = 0x76
	inUIDHi    = 0x78
	inGIDHi    = 0x7a
	inExtra    = 0x80
	inCtimeX   = 0x84
	inMtimeX   = 0x88
	inAtimeX   = 0x8c
)

const (
	flagIndex    = 0x1000 // the directory has a hash tree
	flagHugeFile = 0x40000
	flagExtents  = 0x80000

	flagEncrypt    = 0x800
	flagVerity     = 0x100000
	flagEAInode    = 0x200000
	flagInlineData = 0x10000000
)

const maxLinks = 65000

// An inode in its cached block.
type inode struct {
	no  vfs.Ino
	blk *block
	raw []byte
}

func (n inode) u16(off int) uint16 { return le.Uint16(n.raw[off:]) }
func (n inode) u32(off int) uint32 { return le.Uint32(n.raw[off:]) }

func (n inode) put16(off int, v uint16) {
	le.PutUint16(n.raw[off:], v)
	n.blk.dirty = true
}

func (n inode) put32(off int, v uint32) {
	le.PutUint32(n.raw[off:], v)
	n.blk.dirty = true
}

func (n inode) mode() uint32         { return uint32(n.u16(inMode)) }
func (n inode) kind() uint32         { return n.mode() & syscall.S_IFMT }
func (n inode) isDir() bool          { return n.kind() == syscall.S_IFDIR }
func (n inode) links() uint32        { return uint32(n.u16(inLinks)) }
func (n inode) has(flag uint32) bool { return n.u32(inFlags)&flag != 0 }

func (n inode) size() int64 { return int64(uint64(n.u32(inSize)) | uint64(n.u32(inSizeHi))<<32) }

func (n inode) putSize(size int64) {
	n.put32(inSize, uint32(size))
	n.put32(inSizeHi, uint32(size>>32))
}

// aclBlock returns the block of the extended attributes, 0 if there is none.
func (n inode) aclBlock() uint64 {
	return uint64(n.u32(inACL)) | uint64(n.u16(inACLHi))<<32
}

func (n inode) putACLBlock(no uint64) {
	n.put32(inACL, uint32(no))
	n.put16(inACLHi, uint16(no>>32))
}

// sectors returns i_blocks, in units of 512 bytes or, in huge files, blocks.
func (n inode) sectors() uint64 {
	return uint64(n.u32(inBlocks)) | uint64(n.u16(inBlocksHi))<<32
}

// addBlocks counts blocks that n gained, or lost if delta is negative.
func (f *FS) addBlocks(n inode, delta int64) error {
	if !n.has(flagHugeFile) {
		delta *= f.sb.blockSize / 512
	}
	sum := int64(n.sectors()) + delta
	if sum < 0 || sum >= 1<<48 {
		return f.inodeCorrupt(n, "i_blocks", "%d cannot change by %d", n.sectors(), delta)
	}
	n.put32(inBlocks, uint32(sum))
	n.put16(inBlocksHi, uint16(sum>>32))
	return nil
}

func (f *FS) inodeCorrupt(n inode, field, format string, args ...any) error {
	off := f.sb.off(n.blk.no) + int64(f.inodeOffset(n.no))
	return corrupt(fmt.Sprintf("inode %d", n.no), off, field, format, args...)
}

// inodeOffset returns where in its block inode no is.
func (f *FS) inodeOffset(no vfs.Ino) int {
	_, i := f.sb.inodePos(no)
	return int(int64(i) * int64(f.sb.inodeSize) % f.sb.blockSize)
}

// rawInode returns inode no unchecked.
func (f *FS) rawInode(ctx context.Context, no vfs.Ino) (inode, error) {
	g, i := f.sb.inodePos(no)
	pos := int64(i) * int64(f.sb.inodeSize)
	b, err := f.cache.get(ctx, f.groups[g].inodeTable+uint64(pos/f.sb.blockSize))
	if err != nil {
		return inode{}, fmt.Errorf("read inode %d: %w", no, err)
	}
	return inode{no, b, b.data[pos%f.sb.blockSize:][:f.sb.inodeSize]}, nil
}

// inode returns inode no, which must be in use and one that a path may lead
// to.
func (f *FS) inode(ctx context.Context, no vfs.Ino) (inode, error) {
	if no != RootIno && no < f.sb.firstIno || no > vfs.Ino(f.sb.inodes) {
		return inode{}, fmt.Errorf("inode %d of %d: %w", no, f.sb.inodes, syscall.EINVAL)
	}
	n, err := f.rawInode(ctx, no)
	if err != nil {
		return inode{}, err
	}
	return n, f.checkInode(n)
}

func (f *FS) checkInode(n inode) error {
	switch {
	case n.links() == 0:
		return f.inodeCorrupt(n, "i_links_count", "the inode is not in use")
	case vfs.TypeOf(n.mode()) == vfs.TypeUnknown:
		return f.inodeCorrupt(n, "i_mode", "%#o is no type of file", n.mode())
	case n.size() < 0:
		return f.inodeCorrupt(n, "i_size", "%#x", uint64(n.size()))
	case n.has(flagEncrypt | flagVerity | flagEAInode | flagInlineData):
		return f.inodeCorrupt(n, "i_flags", "%#x needs features that the file system does not have", n.u32(inFlags))
	case f.sb.inodeSize > inodeBase && (int(n.u16(inExtra)) > f.sb.inodeSize-inodeBase || n.u16(inExtra)%4 != 0):
		return f.inodeCorrupt(n, "i_extra_isize", "%d", n.u16(inExtra))
	}
	return nil
}

// Stat describes the file ino.
func (f *FS) Stat(ctx context.Context, ino vfs.Ino) (vfs.Inode, error) {
	if err := f.begin(ctx); err != nil {
		return vfs.Inode{}, err
	}
	n, err := f.inode(ctx, ino)
	if err != nil {
		return vfs.Inode{}, err
	}
	return vfs.Inode{Ino: ino, Attr: n.attr(), Links: n.links(), Size: n.size()}, nil
}

// SetAttr changes the permissions, the owner and the times of the file ino.
// The type in a.Mode must be the file's.
func (f *FS) SetAttr(ctx context.Context, ino vfs.Ino, a vfs.Attr) error {
	if err := f.begin(ctx); err != nil {
		return err
	}
	n, err := f.inode(ctx, ino)
	if err != nil {
		return err
	}
	if n.kind() != a.Mode&syscall.S_IFMT {
		return fmt.Errorf("set mode of inode %d from %#o to %#o: %w", ino, n.mode(), a.Mode, syscall.EINVAL)
	}
	n.putAttr(a)
	return nil
}
