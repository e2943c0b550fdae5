// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Geometry of a new file system, as the reference's tools make it.
const (
	newBlockSize  = 4096
	newPerGroup   = 8 * newBlockSize
	newInodeSize  = 256
	newExtra      = 32
	bytesPerInode = 16384
	lostFoundIno  = 11
	resizeIno     = 7
	lostFoundLen  = 3 // blocks
	dindBlock     = 13
	directBlocks  = 12

	newCompat   = compatExtAttr | compatResizeInode | compatDirIndex | compatSparseSuper2
	newIncompat = incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG
	newROCompat = roSparseSuper | roLargeFile | roHugeFile | roDirNlink | roExtraIsize
)

// FormatOptions tune Format. Zero values are what the reference's tools write.
type FormatOptions struct {
	UUID       [16]byte
	VolumeName string // at most 16 bytes
}

// Format makes an empty file system over the whole of dev, which must read as
// zeroes, and syncs it. All times in it are zero.
func Format(ctx context.Context, dev backend.Writer, opts FormatOptions) error {
	if len(opts.VolumeName) > 16 {
		return fmt.Errorf("format ext4: volume name of %d bytes: %w", len(opts.VolumeName), syscall.EINVAL)
	}
	sb, err := newSuperblock(dev.Size(), opts)
	if err != nil {
		return fmt.Errorf("format ext4: %w", err)
	}
	f := &FS{dev: dev, sb: sb, cache: newCache(dev, newBlockSize), out: vfs.ContentStream(dev)}
	f.placeGroups()
	if err := f.layZone(); err != nil {
		return fmt.Errorf("format ext4: %w", err)
	}
	f.initGroups()
	f.data = sb.groupStart(0)
	if err := f.makeReserved(ctx); err != nil {
		return fmt.Errorf("format ext4: %w", err)
	}
	if err := f.copySupers(ctx); err != nil {
		return fmt.Errorf("format ext4: %w", err)
	}
	return f.Sync(ctx)
}

// newSuperblock lays out a file system on a device of size bytes.
func newSuperblock(size int64, opts FormatOptions) (superblock, error) {
	blocks := uint64(size / newBlockSize)
	raw := make([]byte, superSize)
	groups, ok := countGroups(&blocks)
	if !ok {
		return superblock{}, fmt.Errorf("device of %d bytes: %w", size, syscall.ENOSPC)
	}
	inodesPer := (blocks*newBlockSize/bytesPerInode + groups - 1) / groups
	inodesPer = max((inodesPer+15)&^15, 16) // whole blocks of the inode table
	putGeometry(raw, blocks, groups, inodesPer)
	putFeatures(raw)
	copy(raw[sbUUID:], opts.UUID[:])
	copy(raw[sbVolumeName:], opts.VolumeName)
	return parseSuperblock(raw, size)
}

// putGeometry stores how large the file system and its parts are.
func putGeometry(raw []byte, blocks, groups, inodesPer uint64) {
	put := func(off int, v uint64) { le.PutUint32(raw[off:], uint32(v)) }
	put(sbInodes, groups*inodesPer)
	put(sbBlocks, blocks)
	put(sbBlocksHi, blocks>>32)
	put(sbReserved, blocks/20) // for root, 5 %
	put(sbReservedHi, blocks/20>>32)
	put(sbLogBlock, 2)
	put(sbLogCluster, 2)
	put(sbPerGroup, newPerGroup)
	put(sbClusters, newPerGroup)
	put(sbInodesPer, inodesPer)
	put(sbFirstIno, lostFoundIno)
	le.PutUint16(raw[sbInodeSize:], newInodeSize)
	le.PutUint16(raw[sbReservedGDT:], uint16(reservedGDT(blocks, groups)))
	le.PutUint16(raw[sbDescSize:], gdSize64)
	if groups > 1 {
		put(sbBackups, 1)
	}
	if groups > 2 {
		put(sbBackups+4, groups-1)
	}
}

// putFeatures stores what does not depend on the size.
func putFeatures(raw []byte) {
	le.PutUint16(raw[sbMaxMounts:], 0xffff) // never checked for their number
	le.PutUint16(raw[sbMagic:], superMagic)
	le.PutUint16(raw[sbState:], stateValid)
	le.PutUint16(raw[sbErrors:], 1) // continue
	le.PutUint32(raw[sbRevision:], 1)
	le.PutUint32(raw[sbCompat:], newCompat)
	le.PutUint32(raw[sbIncompat:], newIncompat)
	le.PutUint32(raw[sbROCompat:], newROCompat)
	raw[sbHashVersion] = hashHalfMD4
	le.PutUint16(raw[sbMinExtra:], newExtra)
	le.PutUint16(raw[sbWantExtra:], newExtra)
	le.PutUint32(raw[sbFlags:], flagSignedHash)
	le.PutUint32(raw[sbKBytes:], 1)
}

// countGroups returns how many groups the blocks make. It leaves out a last
// group too small to be of use.
func countGroups(blocks *uint64) (groups uint64, ok bool) {
	for *blocks > 0 {
		groups = (*blocks + newPerGroup - 1) / newPerGroup
		rest := *blocks - (groups-1)*newPerGroup
		inodes := *blocks * newBlockSize / bytesPerInode / groups
		overhead := 3 + 1 + inodes*newInodeSize/newBlockSize + descBlocks(groups) + reservedGDT(*blocks, groups)
		if rest >= overhead+50 {
			return groups, true
		}
		*blocks -= rest
	}
	return 0, false
}

func descBlocks(groups uint64) uint64 {
	const per = newBlockSize / gdSize64
	return (groups + per - 1) / per
}

// reservedGDT returns how many blocks are kept so that the descriptors can
// grow with the file system a thousandfold, as far as one indirect block goes.
func reservedGDT(blocks, groups uint64) uint64 {
	limit := min(blocks*1024, 1<<32-1)
	return min(descBlocks((limit+newPerGroup-1)/newPerGroup)-descBlocks(groups), newBlockSize/4)
}

// placeGroups puts the metadata of every group at its start.
func (f *FS) placeGroups() {
	f.groups = make([]group, f.sb.groups)
	for g := range f.groups {
		at := f.sb.groupStart(g)
		if f.sb.hasSuper(g) {
			at += 1 + f.sb.descBlocks() + f.sb.reserved
		}
		f.groups[g] = group{blockBitmap: at, inodeBitmap: at + 1, inodeTable: at + 2, dirty: true}
	}
}

// initGroups writes the bitmaps and the places of the metadata.
func (f *FS) initGroups() {
	for g := range f.groups {
		d := &f.groups[g]
		blocks := bitmap(f.cache.zero(d.blockBitmap).data)
		f.initBlockBitmap(g, blocks)
		n := f.sb.groupBlocks(g)
		for i := uint64(0); i < n; {
			used := blocks.next(true, i, n)
			d.freeBlocks += uint32(used - i)
			i = blocks.next(false, used, n)
		}
		inodes := bitmap(f.cache.zero(d.inodeBitmap).data)
		inodes.put(true, uint64(f.sb.inodesPer), newPerGroup-uint64(f.sb.inodesPer))
		d.freeInodes = f.sb.inodesPer
	}
	for i := range f.sb.descBlocks() {
		f.cache.zero(1 + i)
	}
	f.cache.zero(0)
	for g, d := range f.groups {
		pos := int64(g) * gdSize64
		raw := f.cache.blocks[1+uint64(pos/newBlockSize)].data[pos%newBlockSize:][:gdSize64]
		for off, no := range map[int]uint64{gdBlockBitmap: d.blockBitmap, gdInodeBitmap: d.inodeBitmap, gdInodeTable: d.inodeTable} {
			le.PutUint32(raw[off:], uint32(no))
			le.PutUint32(raw[off+gdHigh32:], uint32(no>>32))
		}
	}
}

// makeReserved makes the reserved inodes, the root and lost+found.
func (f *FS) makeReserved(ctx context.Context) error {
	bits, err := f.inodeBitmap(ctx, 0)
	if err != nil {
		return err
	}
	bitmap(bits.data).put(true, 0, uint64(f.sb.firstIno)-1)
	f.groups[0].freeInodes -= uint32(f.sb.firstIno) - 1
	f.cache.zero(f.groups[0].inodeTable)
	f.meta = run{f.groups[0].inodeTable + f.sb.tableBlocks(), 1 + lostFoundLen + 1}
	if err := f.makeRoot(ctx); err != nil {
		return err
	}
	if err := f.makeLostFound(ctx); err != nil {
		return err
	}
	return f.makeResize(ctx)
}

func (f *FS) makeRoot(ctx context.Context) error {
	root, err := f.rawInode(ctx, RootIno)
	if err != nil {
		return err
	}
	f.groups[0].dirs++
	root.put16(inExtra, newExtra)
	root.putAttr(vfs.Attr{Mode: syscall.S_IFDIR | 0o755})
	root.put16(inLinks, 2)
	f.initExtents(root)
	return f.initDir(ctx, root, RootIno)
}

// makeLostFound makes the directory in which e2fsck keeps what it finds, with
// room for names.
func (f *FS) makeLostFound(ctx context.Context) error {
	no, err := f.Create(ctx, RootIno, "lost+found", vfs.Attr{Mode: syscall.S_IFDIR | 0o700})
	if err != nil {
		return err
	}
	n, err := f.dir(ctx, no)
	if err != nil {
		return err
	}
	for f.dirBlocks(n) < lostFoundLen {
		b, _, err := f.appendDirBlock(ctx, n)
		if err != nil {
			return err
		}
		fillNames(b.data, nil)
	}
	return nil
}

// makeResize makes the inode that keeps the reserved descriptor blocks: a
// double indirect block leads to each of them, and each leads to its copies in
// other groups.
func (f *FS) makeResize(ctx context.Context) error {
	dind, err := f.allocMeta(ctx)
	if err != nil {
		return err
	}
	n, err := f.rawInode(ctx, resizeIno)
	if err != nil {
		return err
	}
	used := int64(1)
	for i := range f.sb.reserved {
		no := f.sb.first + 1 + f.sb.descBlocks() + i
		le.PutUint32(dind.data[(f.sb.descBlocks()+i)%(newBlockSize/4)*4:], uint32(no))
		b := f.cache.zero(no)
		used++
		for k, g := range f.copies() {
			le.PutUint32(b.data[4*k:], uint32(f.sb.groupStart(g)+no))
			used++
		}
	}
	n.put16(inMode, syscall.S_IFREG|0o600)
	n.put16(inLinks, 1)
	n.put16(inExtra, newExtra)
	n.put32(inBlock+4*dindBlock, uint32(dind.no))
	const perBlock = newBlockSize / 4
	n.putSize((directBlocks + perBlock + perBlock*perBlock) * newBlockSize)
	return f.addBlocks(n, used)
}

// copies returns the groups that have copies of the superblock.
func (f *FS) copies() []int {
	var groups []int
	for _, g := range f.sb.backups {
		if g != 0 {
			groups = append(groups, int(g))
		}
	}
	return groups
}

// copySupers writes the copies of the superblock and of the descriptors.
func (f *FS) copySupers(ctx context.Context) error {
	if err := f.putGroups(ctx); err != nil {
		return err
	}
	for _, g := range f.copies() {
		start := f.sb.groupStart(g)
		super := f.cache.zero(start).data
		copy(super, f.sb.raw)
		le.PutUint16(super[sbGroup:], uint16(g))
		le.PutUint16(super[sbState:], 0) // only the first is marked as unmounted
		for i := range f.sb.descBlocks() {
			table, err := f.cache.get(ctx, 1+i)
			if err != nil {
				return err
			}
			copy(f.cache.zero(start+1+i).data, table.data)
		}
	}
	return nil
}
