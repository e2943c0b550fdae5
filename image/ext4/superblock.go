// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

var le = binary.LittleEndian

// The superblock, 1024 bytes at byte 1024 of the device. Little-endian, as
// everything else. Offsets of the fields in use; they are durable.
//
//	0x00 u32 inodes        0x04 u32 blocks, low    0x08 u32 reserved, low
//	0x0c u32 free blocks   0x10 u32 free inodes    0x14 u32 first data block
//	0x18 u32 log block size − 10                   0x1c u32 log cluster size − 10
//	0x20 u32 blocks per group                      0x24 u32 clusters per group
//	0x28 u32 inodes per group                      0x36 u16 maximal mount count
//	0x38 u16 magic         0x3a u16 state          0x3c u16 on errors
//	0x4c u32 revision      0x54 u32 first inode    0x58 u16 inode size
//	0x5c u32 compatible, 0x60 u32 incompatible, 0x64 u32 read-only features
//	0x68 [16] UUID         0x78 [16] volume name   0xce u16 reserved GDT blocks
//	0xe8 u32 last orphan   0xec [4]u32 hash seed   0xfc u8 hash version
//	0xfe u16 descriptor size                       0x150 u32 blocks, high
//	0x154 u32 reserved, high                       0x158 u32 free blocks, high
//	0x15c u16 least, 0x15e u16 wanted extra isize  0x160 u32 flags
//	0x178 u64 KiB written                          0x24c [2]u32 backup groups
const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xef53

	sbInodes       = 0x00
	sbBlocks       = 0x04
	sbReserved     = 0x08
	sbFreeBlocks   = 0x0c
	sbFreeInodes   = 0x10
	sbFirstBlock   = 0x14
	sbLogBlock     = 0x18
	sbLogCluster   = 0x1c
	sbPerGroup     = 0x20
	sbClusters     = 0x24
	sbInodesPer    = 0x28
	sbMaxMounts    = 0x36
	sbMagic        = 0x38
	sbState        = 0x3a
	sbErrors       = 0x3c
	sbRevision     = 0x4c
	sbFirstIno     = 0x54
	sbInodeSize    = 0x58
	sbGroup        = 0x5a // of a copy
	sbCompat       = 0x5c
	sbIncompat     = 0x60
	sbROCompat     = 0x64
	sbUUID         = 0x68
	sbVolumeName   = 0x78
	sbReservedGDT  = 0xce
	sbLastOrphan   = 0xe8
	sbHashSeed     = 0xec
	sbHashVersion  = 0xfc
	sbDescSize     = 0xfe
	sbBlocksHi     = 0x150
	sbReservedHi   = 0x154
	sbFreeBlocksHi = 0x158
	sbMinExtra     = 0x15c
	sbWantExtra    = 0x15e
	sbFlags        = 0x160
	sbKBytes       = 0x178
	sbBackups      = 0x24c
)

const (
	stateValid = 1 // unmounted cleanly
	stateError = 2

	flagSignedHash   = 1
	flagUnsignedHash = 2
)

// maxGroups bounds the memory that descriptors take: 512 Ki groups of 128 MiB
// are 64 TiB.
const maxGroups = 1 << 19

// superblock holds what the package uses of the superblock, checked.
type superblock struct {
	raw []byte // the 1024 bytes, written back by Sync

	blockSize int64
	first     uint64 // first block of group 0
	blocks    uint64
	perGroup  uint64 // blocks in a group
	inodes    uint32
	inodesPer uint32 // inodes in a group
	inodeSize int
	extra     int     // i_extra_isize of new inodes
	firstIno  vfs.Ino // first that is not reserved
	groups    int
	descSize  int
	reserved  uint64 // blocks kept behind the descriptors for growth
	backups   [2]uint32
	hashSeed  [4]uint32
	hash      uint8 // version for new directories

	compat, incompat, roCompat uint32
}

func readSuperblock(ctx context.Context, dev backend.Writer) (superblock, error) {
	if dev.Size() < superOffset+superSize {
		return superblock{}, corrupt("superblock", superOffset, "s_magic", "a device of %d bytes has none", dev.Size())
	}
	raw := make([]byte, superSize)
	if err := readFull(ctx, dev, raw, superOffset); err != nil {
		return superblock{}, err
	}
	return parseSuperblock(raw, dev.Size())
}

// readFull fills p from byte offset off of dev.
func readFull(ctx context.Context, dev backend.Writer, p []byte, off int64) error {
	n, err := dev.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = errors.New("short read")
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

func superCorrupt(field, format string, args ...any) error {
	return corrupt("superblock", superOffset, field, format, args...)
}

// parseSuperblock checks raw against itself and the size of the device.
func parseSuperblock(raw []byte, size int64) (superblock, error) {
	u16 := func(off int) uint16 { return le.Uint16(raw[off:]) }
	u32 := func(off int) uint32 { return le.Uint32(raw[off:]) }
	if u16(sbMagic) != superMagic {
		return superblock{}, superCorrupt("s_magic", "%#x, want %#x", u16(sbMagic), superMagic)
	}
	if u32(sbRevision) != 1 {
		return superblock{}, fmt.Errorf("ext2 revision %d: %w", u32(sbRevision), errors.ErrUnsupported)
	}
	sb := superblock{
		raw:    raw,
		compat: u32(sbCompat), incompat: u32(sbIncompat), roCompat: u32(sbROCompat),
		first:     uint64(u32(sbFirstBlock)),
		blocks:    uint64(u32(sbBlocks)),
		perGroup:  uint64(u32(sbPerGroup)),
		inodes:    u32(sbInodes),
		inodesPer: u32(sbInodesPer),
		inodeSize: int(u16(sbInodeSize)),
		firstIno:  vfs.Ino(u32(sbFirstIno)),
		descSize:  32,
		reserved:  uint64(u16(sbReservedGDT)),
		backups:   [2]uint32{u32(sbBackups), u32(sbBackups + 4)},
		hash:      raw[sbHashVersion],
	}
	for i := range sb.hashSeed {
		sb.hashSeed[i] = u32(sbHashSeed + 4*i)
	}
	if err := sb.checkFeatures(); err != nil {
		return superblock{}, err
	}
	if sb.has64bit() {
		sb.descSize = int(u16(sbDescSize))
		sb.blocks |= uint64(u32(sbBlocksHi)) << 32
	}
	if u32(sbLogBlock) > 2 {
		return superblock{}, fmt.Errorf("block size 1024<<%d: %w", u32(sbLogBlock), errors.ErrUnsupported)
	}
	sb.blockSize = 1024 << u32(sbLogBlock)
	if err := sb.checkGeometry(size); err != nil {
		return superblock{}, err
	}
	sb.extra = extraSize(sb.inodeSize, int(u16(sbWantExtra)))
	return sb, nil
}

// extraSize returns the i_extra_isize of new inodes: 32 bytes hold all times.
func extraSize(inodeSize, want int) int {
	if inodeSize == inodeBase {
		return 0
	}
	return min(max(want, 32), inodeSize-inodeBase) &^ 3
}

func (sb *superblock) checkGeometry(size int64) error {
	bs := uint64(sb.blockSize)
	inodesPerBlock := uint32(bs) / uint32(max(sb.inodeSize, 1))
	wantFirst := uint64(0)
	if bs == 1024 {
		wantFirst = 1
	}
	switch {
	case le.Uint32(sb.raw[sbLogCluster:]) != le.Uint32(sb.raw[sbLogBlock:]):
		return superCorrupt("s_log_cluster_size", "differs from the block size")
	case sb.inodeSize < inodeBase || sb.inodeSize > int(bs) || bits.OnesCount(uint(sb.inodeSize)) != 1:
		return superCorrupt("s_inode_size", "%d", sb.inodeSize)
	case sb.first != wantFirst:
		return superCorrupt("s_first_data_block", "%d, want %d", sb.first, wantFirst)
	case sb.blocks <= sb.first+1 || sb.blocks > uint64(size)/bs:
		return superCorrupt("s_blocks_count", "%d blocks of %d on a device of %d bytes", sb.blocks, bs, size)
	case sb.perGroup == 0 || sb.perGroup%8 != 0 || sb.perGroup > 8*bs:
		return superCorrupt("s_blocks_per_group", "%d", sb.perGroup)
	case sb.inodesPer < inodesPerBlock || sb.inodesPer%inodesPerBlock != 0 || sb.inodesPer%8 != 0 || uint64(sb.inodesPer) > 8*bs:
		return superCorrupt("s_inodes_per_group", "%d", sb.inodesPer)
	case sb.descSize < 32 || sb.has64bit() && sb.descSize < 64 || sb.descSize > gdSize64 || bits.OnesCount(uint(sb.descSize)) != 1:
		return superCorrupt("s_desc_size", "%d", sb.descSize)
	case sb.reserved > bs/4:
		return superCorrupt("s_reserved_gdt_blocks", "%d", sb.reserved)
	}
	groups := (sb.blocks - sb.first + sb.perGroup - 1) / sb.perGroup
	switch {
	case groups > maxGroups:
		return superCorrupt("s_blocks_count", "%d groups are over the limit of %d", groups, maxGroups)
	case uint64(sb.inodes) != groups*uint64(sb.inodesPer):
		return superCorrupt("s_inodes_count", "%d, want %d groups of %d", sb.inodes, groups, sb.inodesPer)
	case sb.firstIno < 11 || sb.firstIno > vfs.Ino(sb.inodes):
		return superCorrupt("s_first_ino", "%d", sb.firstIno)
	}
	sb.groups = int(groups)
	return nil
}

// descBlocks returns how many blocks the group descriptors take.
func (sb *superblock) descBlocks() uint64 {
	per := uint64(sb.blockSize) / uint64(sb.descSize)
	return (uint64(sb.groups) + per - 1) / per
}

// tableBlocks returns how many blocks the inode table of a group takes.
func (sb *superblock) tableBlocks() uint64 {
	return uint64(sb.inodesPer) * uint64(sb.inodeSize) / uint64(sb.blockSize)
}

// groupStart returns the first block of group g.
func (sb *superblock) groupStart(g int) uint64 { return sb.first + uint64(g)*sb.perGroup }

// groupBlocks returns how many blocks group g has: the last may have fewer.
func (sb *superblock) groupBlocks(g int) uint64 {
	return min(sb.perGroup, sb.blocks-sb.groupStart(g))
}

// hasSuper reports whether group g begins with a copy of the superblock and of
// the descriptors.
func (sb *superblock) hasSuper(g int) bool {
	switch {
	case g == 0:
		return true
	case sb.compat&compatSparseSuper2 != 0:
		return uint32(g) == sb.backups[0] || uint32(g) == sb.backups[1]
	case sb.roCompat&roSparseSuper == 0 || g == 1:
		return true
	}
	return isPower(g, 3) || isPower(g, 5) || isPower(g, 7)
}

func isPower(n, base int) bool {
	for n > 1 && n%base == 0 {
		n /= base
	}
	return n == 1
}

// off returns where block no begins on the device, in bytes.
func (sb *superblock) off(no uint64) int64 { return int64(no) * sb.blockSize }
