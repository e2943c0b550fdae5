// SPDX-License-Identifier: Apache-2.0

package erofs

import "encoding/binary"

var le = binary.LittleEndian

// Units. All are durable.
const (
	blockBits = 12 // the only size of blocks that is supported, as in the reference's images
	blockSize = 1 << blockBits
	slotSize  = 32 // what nids count
)

// The superblock. Offsets count from its own beginning and are durable, as are
// the features. The checksum covers the rest of the block.
const (
	superOff   = 1024 // on the device
	superSize  = 128
	superMagic = 0xe0f5e1e2

	sbMagic     = 0   // u32
	sbChecksum  = 4   // u32
	sbCompat    = 8   // u32
	sbBlockBits = 12  // u8
	sbRoot      = 14  // u16 nid
	sbInodes    = 16  // u64
	sbTime      = 24  // u64 seconds, of all compact inodes
	sbTimeNsec  = 32  // u32
	sbBlocks    = 36  // u32
	sbMeta      = 40  // u32 block, from which nids count
	sbXattrs    = 44  // u32 block, from which the IDs of shared attributes count
	sbUUID      = 48  // 16 bytes
	sbName      = 64  // 16 bytes
	sbIncompat  = 80  // u32
	sbDevices   = 86  // u16 more devices
	sbDirBits   = 90  // u8
	sbPrefixes  = 91  // u8 count of long prefixes
	sbPrefixOff = 92  // u32, in units of 4 bytes
	sbPacked    = 96  // u64 nid
	sbReserved  = 104 // of what is written here
)

const (
	compatChecksum    = 0x1
	compatMtime       = 0x2
	compatPlainPrefix = 0x10 // long prefixes do not lie in the packed file
)

const (
	incompatPadding   = 0x1 // this and the next few say how files are compressed
	incompatConfigs   = 0x2
	incompatChunked   = 0x4
	incompatDevices   = 0x8 // or a second algorithm
	incompatTails     = 0x10
	incompatFragments = 0x20
	incompatPrefixes  = 0x40
	incompatKnown     = 0x7f
)

// unsupported names the features that are refused, by their bits.
var unsupported = map[uint32]string{
	0x80:  "48-bit block addresses",
	0x100: "a metadata box",
}

// An inode is compact or extended. Offsets are durable; those of 32 bytes and
// more are of extended ones.
const (
	compactSize  = 32
	extendedSize = 64

	inFormat = 0  // u16: bit 0 extended, bits 1 to 3 layout
	inXattrs = 2  // u16: 0, or 4-byte words of attributes but for the header, and 1
	inMode   = 4  // u16
	inLinks  = 6  // u16, compact
	inSize   = 8  // u32, or u64 of extended ones
	inData   = 16 // u32: block of the content, device number, or form of chunks
	inIno    = 20 // u32
	inUID16  = 24 // u16, compact
	inGID16  = 26 // u16, compact
	inUID    = 24 // u32
	inGID    = 28 // u32
	inMtime  = 32 // u64 seconds
	inNsec   = 40 // u32
	inLinks4 = 44 // u32
)

// A layout says where the content of a file is. The values are durable.
type layout uint8

const (
	layoutPlain      layout = 0 // in consecutive blocks
	layoutCompressed layout = 1
	layoutInline     layout = 2 // as plain, but the rest behind the last full block lies behind the inode
	layoutCompact    layout = 3 // compressed as well
	layoutChunks     layout = 4 // in chunks, which a table behind the inode places
)

// Chunks.
const (
	chunkBits    = 0x1f // log2 of the blocks in a chunk
	chunkIndexes = 0x20 // entries of 8 bytes: 2 unused, u16 device, u32 block; else u32 block
	chunkKnown   = chunkBits | chunkIndexes
	chunkHole    = 1<<32 - 1
)

// A directory is made of blocks of their own: entries, then the names, from
// the first to the last in the order of their bytes. Only the last name of a
// block may be followed by zeros.
const (
	direntSize = 12
	deNid      = 0  // u64
	deName     = 8  // u16, offset in the block
	deType     = 10 // u8

	maxName = 255
)

// Attributes follow the inode: a header, the IDs of shared ones, then entries
// padded to 4 bytes.
const (
	xattrHead   = 12
	xhShared    = 4 // u8
	xattrEntry  = 4
	xeName      = 0 // u8 length
	xeIndex     = 1 // u8
	xeSize      = 2 // u16
	xattrLong   = 0x80
	maxXattrs   = xattrHead + 0xfffe*4 // bytes behind an inode
	maxAllXattr = 1 << 20              // bytes of an inode's, shared ones included, that are read
)

func align(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
