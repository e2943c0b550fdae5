// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A superblock holds what is used of one; raw has the rest.
type superblock struct {
	raw    [superSize]byte
	device int64 // bytes

	compat    uint32
	incompat  uint32
	root      uint64 // nid
	inodes    uint64
	time      int64 // of compact inodes, seconds
	timeNsec  uint32
	blocks    int64
	meta      int64 // byte offset from which nids count
	xattrs    int64 // byte offset
	prefixes  int
	prefixOff int64 // bytes
	packed    uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns that of the superblock, which area begins with: CRC-32C
// without the final inversion, of the whole area with a zero checksum.
func checksum(area []byte) uint32 {
	crc := crc32.Update(0, castagnoli, area[:sbChecksum])
	crc = crc32.Update(crc, castagnoli, make([]byte, 4))
	return ^crc32.Update(crc, castagnoli, area[sbChecksum+4:])
}

// readSuper reads the superblock of dev.
func readSuper(ctx context.Context, dev backend.Volume) (superblock, error) {
	if dev.Size() < blockSize {
		return superblock{}, corrupt("superblock", superOff, "magic", "on a device of %d bytes", dev.Size())
	}
	area := make([]byte, blockSize-superOff)
	if err := readFull(ctx, dev, area, superOff); err != nil {
		return superblock{}, fmt.Errorf("read superblock: %w", err)
	}
	return parseSuper(area, dev.Size())
}

// parseSuper parses the superblock at the beginning of area, the rest of its
// block, on a device of so many bytes.
func parseSuper(area []byte, device int64) (superblock, error) {
	s := superblock{raw: [superSize]byte(area), device: device}
	u32 := func(off int) uint32 { return le.Uint32(s.raw[off:]) }
	if u32(sbMagic) != superMagic {
		return s, corrupt("superblock", superOff, "magic", "%#x", u32(sbMagic))
	}
	s.compat, s.incompat = u32(sbCompat), u32(sbIncompat)
	s.root, s.packed = uint64(le.Uint16(s.raw[sbRoot:])), le.Uint64(s.raw[sbPacked:])
	s.inodes = le.Uint64(s.raw[sbInodes:])
	s.time, s.timeNsec = int64(le.Uint64(s.raw[sbTime:])), u32(sbTimeNsec)
	s.blocks = int64(u32(sbBlocks))
	s.meta, s.xattrs = int64(u32(sbMeta))<<blockBits, int64(u32(sbXattrs))<<blockBits
	s.prefixes, s.prefixOff = int(s.raw[sbPrefixes]), int64(u32(sbPrefixOff))*4
	if err := s.supported(); err != nil {
		return s, err
	}
	if s.compat&compatChecksum != 0 && checksum(area) != u32(sbChecksum) {
		return s, corrupt("superblock", superOff, "checksum", "%#x, not %#x", u32(sbChecksum), checksum(area))
	}
	return s, s.check()
}

// supported reports features that are not.
func (s *superblock) supported() error {
	if rest := s.incompat &^ incompatKnown; rest != 0 {
		bit := rest & -rest
		name, ok := unsupported[bit]
		if !ok {
			name = fmt.Sprintf("feature %#x", bit)
		}
		return fmt.Errorf("EROFS with %s: %w", name, errors.ErrUnsupported)
	}
	switch {
	case s.raw[sbBlockBits] != blockBits:
		return fmt.Errorf("EROFS with blocks of 2^%d bytes: %w", s.raw[sbBlockBits], errors.ErrUnsupported)
	case s.raw[sbDirBits] != 0:
		return fmt.Errorf("EROFS with blocks of directories of 2^%d blocks: %w", s.raw[sbDirBits], errors.ErrUnsupported)
	case le.Uint16(s.raw[sbDevices:]) != 0:
		return fmt.Errorf("EROFS on %d more devices: %w", le.Uint16(s.raw[sbDevices:]), errors.ErrUnsupported)
	}
	return nil
}

func (s *superblock) check() error {
	switch {
	case s.blocks == 0 || s.blocks > s.device>>blockBits:
		return corrupt("superblock", superOff, "blocks", "%d on a device of %d bytes", s.blocks, s.device)
	case s.meta >= s.end():
		return corrupt("superblock", superOff, "meta_blkaddr", "%d", s.meta>>blockBits)
	case s.xattrs > s.end():
		return corrupt("superblock", superOff, "xattr_blkaddr", "%d", s.xattrs>>blockBits)
	}
	return nil
}

// put stores s at the beginning of area, the rest of its block.
func (s *superblock) put(area []byte) {
	le.PutUint16(s.raw[sbRoot:], uint16(s.root))
	le.PutUint64(s.raw[sbInodes:], s.inodes)
	le.PutUint32(s.raw[sbBlocks:], uint32(s.blocks))
	copy(area, s.raw[:])
	if s.compat&compatChecksum != 0 {
		le.PutUint32(area[sbChecksum:], checksum(area))
	}
}

// end returns the size in bytes of what is used of the device. What lies
// behind it is not the file system's.
func (s *superblock) end() int64 { return s.blocks << blockBits }

// limit returns how many blocks there can be.
func (s *superblock) limit() int64 { return min(s.device>>blockBits, math.MaxUint32) }

// inodeOff returns where the inode nid is.
func (s *superblock) inodeOff(nid uint64) (off int64, ok bool) {
	if nid >= uint64(s.end()-s.meta)/slotSize {
		return 0, false
	}
	off = s.meta + int64(nid)*slotSize
	return off, true
}

// nid returns the name of the inode at off, which must lie behind meta.
func (s *superblock) nid(off int64) uint64 { return uint64(off-s.meta) / slotSize }

// readFull fills p from byte offset off, whole sectors.
func readFull(ctx context.Context, v backend.Volume, p []byte, off int64) error {
	n, err := v.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}
