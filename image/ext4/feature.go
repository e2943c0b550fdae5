// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"errors"
	"fmt"
)

// Features of a file system that the package knows. The bits are durable.
const (
	compatHasJournal   = 0x4
	compatExtAttr      = 0x8
	compatResizeInode  = 0x10
	compatDirIndex     = 0x20
	compatSparseSuper2 = 0x200

	incompatFiletype = 0x2
	incompatRecover  = 0x4
	incompatExtents  = 0x40
	incompat64bit    = 0x80
	incompatFlexBG   = 0x200

	roSparseSuper = 0x1
	roLargeFile   = 0x2
	roBtreeDir    = 0x4 // never used by anything
	roHugeFile    = 0x8
	roGDTCsum     = 0x10
	roDirNlink    = 0x20
	roExtraIsize  = 0x40
)

// Which features an editor must know. Features only called compatible need no
// care by definition.
const (
	knownIncompat = incompatFiletype | incompatRecover | incompatExtents | incompat64bit | incompatFlexBG
	knownRO       = roSparseSuper | roLargeFile | roBtreeDir | roHugeFile | roGDTCsum | roDirNlink | roExtraIsize
)

var incompatNames = map[uint32]string{
	0x1: "compression", 0x8: "journal_dev", 0x10: "meta_bg", 0x100: "mmp", 0x400: "ea_inode", 0x1000: "dirdata",
	0x2000: "metadata_csum_seed", 0x4000: "large_dir", 0x8000: "inline_data", 0x10000: "encrypt", 0x20000: "casefold",
}

var roNames = map[uint32]string{
	0x80: "snapshot", 0x100: "quota", 0x200: "bigalloc", 0x400: "metadata_csum", 0x800: "replica", 0x1000: "read-only",
	0x2000: "project", 0x4000: "shared_blocks", 0x8000: "verity", 0x10000: "orphan_present",
}

// checkFeatures refuses what an editor without full knowledge would damage.
func (sb *superblock) checkFeatures() error {
	if err := unknown(sb.incompat&^knownIncompat, incompatNames); err != nil {
		return err
	}
	if err := unknown(sb.roCompat&^knownRO, roNames); err != nil {
		return err
	}
	state := le.Uint16(sb.raw[sbState:])
	switch {
	case sb.incompat&incompatExtents == 0:
		return fmt.Errorf("file system without extents: %w", errors.ErrUnsupported)
	case sb.incompat&incompatRecover != 0:
		return fmt.Errorf("%w: its journal has not been replayed", ErrUnclean)
	case state&stateValid == 0 || state&stateError != 0:
		return fmt.Errorf("%w: state %#x", ErrUnclean, state)
	case le.Uint32(sb.raw[sbLastOrphan:]) != 0:
		return fmt.Errorf("%w: it has orphaned inodes", ErrUnclean)
	}
	return nil
}

// unknown names the lowest of the feature bits set in mask.
func unknown(mask uint32, names map[uint32]string) error {
	if mask == 0 {
		return nil
	}
	bit := mask & -mask
	name, ok := names[bit]
	if !ok {
		name = fmt.Sprintf("%#x", bit)
	}
	return fmt.Errorf("feature %s: %w", name, errors.ErrUnsupported)
}

func (sb *superblock) has64bit() bool   { return sb.incompat&incompat64bit != 0 }
func (sb *superblock) hasGDTCsum() bool { return sb.roCompat&roGDTCsum != 0 }
func (sb *superblock) hasFiletype() bool {
	return sb.incompat&incompatFiletype != 0
}
func (sb *superblock) hasDirIndex() bool { return sb.compat&compatDirIndex != 0 }
