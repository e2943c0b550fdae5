// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
)

// A group descriptor. Fields of a 64-byte one; the first half is there in any.
// The offsets are durable.
//
//	0x00 u32 block bitmap     0x04 u32 inode bitmap    0x08 u32 inode table
//	0x0c u16 free blocks      0x0e u16 free inodes     0x10 u16 directories
//	0x12 u16 flags            0x1c u16 unused inodes   0x1e u16 checksum
//	0x20, 0x24, 0x28 u32 and 0x2c, 0x2e, 0x30, 0x32 u16: high halves
const (
	gdBlockBitmap = 0x00
	gdInodeBitmap = 0x04
	gdInodeTable  = 0x08
	gdFreeBlocks  = 0x0c
	gdFreeInodes  = 0x0e
	gdDirs        = 0x10
	gdFlags       = 0x12
	gdUnused      = 0x1c
	gdChecksum    = 0x1e
	gdHigh32      = 0x20 // added to the offset of a 32-bit field
	gdHigh16      = 0x2c // plus the offset from gdFreeBlocks
	gdUnusedHi    = 0x32
	gdSize64      = 64
)

const (
	groupInodeUninit = 1 // the inode bitmap and table were never written
	groupBlockUninit = 2 // the block bitmap was never written
)

// A group is a block group's descriptor.
type group struct {
	blockBitmap, inodeBitmap, inodeTable uint64

	freeBlocks, freeInodes, dirs uint32

	unused uint32 // inodes at the end of the table that were never written
	flags  uint16
	dirty  bool
}

// readGroups reads and checks the descriptors, and lays out the system zone.
func (f *FS) readGroups(ctx context.Context) error {
	sb := &f.sb
	if sb.first+1+sb.descBlocks()+sb.reserved > sb.blocks {
		return superCorrupt("s_blocks_count", "%d blocks have no room for the group descriptors", sb.blocks)
	}
	table := make([]byte, sb.descBlocks()*uint64(sb.blockSize))
	at := sb.off(sb.first + 1)
	if err := readFull(ctx, f.dev, table, at); err != nil {
		return err
	}
	f.groups = make([]group, sb.groups)
	for g := range f.groups {
		raw := table[g*sb.descSize:][:sb.descSize]
		f.groups[g] = sb.parseGroup(raw)
		if err := sb.checkGroup(g, raw, f.groups[g]); err != nil {
			return err
		}
	}
	return f.layZone()
}

func (sb *superblock) parseGroup(raw []byte) group {
	wide := sb.has64bit()
	u32 := func(off int) uint64 {
		v := uint64(le.Uint32(raw[off:]))
		if wide {
			v |= uint64(le.Uint32(raw[off+gdHigh32:])) << 32
		}
		return v
	}
	u16 := func(off, high int) uint32 {
		v := uint32(le.Uint16(raw[off:]))
		if wide {
			v |= uint32(le.Uint16(raw[high:])) << 16
		}
		return v
	}
	d := group{
		blockBitmap: u32(gdBlockBitmap), inodeBitmap: u32(gdInodeBitmap), inodeTable: u32(gdInodeTable),
		freeBlocks: u16(gdFreeBlocks, gdHigh16), freeInodes: u16(gdFreeInodes, gdHigh16+2), dirs: u16(gdDirs, gdHigh16+4),
	}
	if sb.hasGDTCsum() { // otherwise the fields mean nothing
		d.flags = le.Uint16(raw[gdFlags:])
		d.unused = u16(gdUnused, gdUnusedHi)
	}
	return d
}

// put stores d into the bytes of its descriptor.
func (sb *superblock) putGroup(g int, d group, raw []byte) {
	put16 := func(off, high int, v uint32) {
		le.PutUint16(raw[off:], uint16(v))
		if sb.has64bit() {
			le.PutUint16(raw[high:], uint16(v>>16))
		}
	}
	put16(gdFreeBlocks, gdHigh16, d.freeBlocks)
	put16(gdFreeInodes, gdHigh16+2, d.freeInodes)
	put16(gdDirs, gdHigh16+4, d.dirs)
	if sb.hasGDTCsum() {
		le.PutUint16(raw[gdFlags:], d.flags)
		put16(gdUnused, gdUnusedHi, d.unused)
		le.PutUint16(raw[gdChecksum:], sb.groupChecksum(g, raw))
	}
}

// groupChecksum returns the CRC-16 of descriptor g as uninit_bg keeps it.
func (sb *superblock) groupChecksum(g int, raw []byte) uint16 {
	crc := crc16(^uint16(0), sb.raw[sbUUID:sbUUID+16])
	crc = crc16(crc, le.AppendUint32(nil, uint32(g)))
	crc = crc16(crc, raw[:gdChecksum])
	return crc16(crc, raw[gdChecksum+2:])
}

// crc16 continues a CRC-16 with the reflected polynomial 0xa001 (CRC-16/ARC).
func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			crc = crc>>1 ^ 0xa001&-(crc&1)
		}
	}
	return crc
}

func (sb *superblock) checkGroup(g int, raw []byte, d group) error {
	bad := func(field, format string, args ...any) error {
		off := sb.off(sb.first+1) + int64(g)*int64(sb.descSize)
		return corrupt(fmt.Sprintf("group descriptor %d", g), off, field, format, args...)
	}
	if sb.hasGDTCsum() {
		if got, want := le.Uint16(raw[gdChecksum:]), sb.groupChecksum(g, raw); got != want {
			return bad("bg_checksum", "%#x, want %#x", got, want)
		}
	}
	inside := func(no, n uint64) bool { return no > sb.first && n <= sb.blocks && no <= sb.blocks-n }
	switch {
	case !inside(d.blockBitmap, 1):
		return bad("bg_block_bitmap", "block %d is outside the file system", d.blockBitmap)
	case !inside(d.inodeBitmap, 1):
		return bad("bg_inode_bitmap", "block %d is outside the file system", d.inodeBitmap)
	case !inside(d.inodeTable, sb.tableBlocks()):
		return bad("bg_inode_table", "block %d is outside the file system", d.inodeTable)
	case uint64(d.freeBlocks) > sb.groupBlocks(g):
		return bad("bg_free_blocks_count", "%d", d.freeBlocks)
	case d.freeInodes > sb.inodesPer:
		return bad("bg_free_inodes_count", "%d", d.freeInodes)
	case d.dirs > sb.inodesPer:
		return bad("bg_used_dirs_count", "%d", d.dirs)
	case d.unused > sb.inodesPer:
		return bad("bg_itable_unused", "%d", d.unused)
	}
	return nil
}

// putGroups stores the changed descriptors and the totals of the superblock.
// The copies in other groups are left as they are, as the kernel leaves them.
func (f *FS) putGroups(ctx context.Context) error {
	var freeBlocks, freeInodes uint64
	changed := false
	for g := range f.groups {
		d := &f.groups[g]
		freeBlocks += uint64(d.freeBlocks)
		freeInodes += uint64(d.freeInodes)
		if !d.dirty {
			continue
		}
		pos := int64(g) * int64(f.sb.descSize)
		b, err := f.cache.get(ctx, f.sb.first+1+uint64(pos/f.sb.blockSize))
		if err != nil {
			return err
		}
		f.sb.putGroup(g, *d, b.data[pos%f.sb.blockSize:][:f.sb.descSize])
		b.dirty, d.dirty, changed = true, false, true
	}
	if !changed {
		return nil
	}
	le.PutUint32(f.sb.raw[sbFreeBlocks:], uint32(freeBlocks))
	if f.sb.has64bit() {
		le.PutUint32(f.sb.raw[sbFreeBlocksHi:], uint32(freeBlocks>>32))
	}
	le.PutUint32(f.sb.raw[sbFreeInodes:], uint32(freeInodes))
	return f.putSuper(ctx)
}

func (f *FS) putSuper(ctx context.Context) error {
	b, err := f.cache.get(ctx, superOffset/uint64(f.sb.blockSize))
	if err != nil {
		return err
	}
	copy(b.data[superOffset%f.sb.blockSize:], f.sb.raw)
	b.dirty = true
	return nil
}
