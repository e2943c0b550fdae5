// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Extended attributes are in the inode behind its fields, in a block of their
// own, or both. Entries grow from the front, values from the back. The offsets
// are durable.
//
//	inode  0 u32 magic, 4 entries; offsets of values count from the first entry
//	block  0 u32 magic, 4 u32 references, 8 u32 blocks, 12 u32 hash, 32 entries;
//	       offsets of values count from the start of the block
//	entry  0 u8 length of name, 1 u8 name space, 2 u16 offset of value,
//	       4 u32 zero, 8 u32 size of value, 12 u32 hash, 16 name, padded to 4
//
// A zero word ends the entries. Those in a block are sorted.
const (
	xattrMagic = 0xea020000
	xattrHead  = 32 // of a block
	xattrEntry = 16
)

// xattrSpaces are the name spaces. An index is durable. The second and third
// are whole names, of which nothing is left to store.
var xattrSpaces = []struct {
	index  byte
	prefix string
}{
	{1, "user."},
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{4, "trusted."},
	{6, "security."},
	{7, "system."},
}

const (
	spaceACLAccess  = 2
	spaceACLDefault = 3
)

// An xattr is an attribute as it is stored.
type xattr struct {
	space byte
	name  string // behind the prefix
	value []byte
}

func pad4(n int) int { return (n + 3) &^ 3 }

// size returns how many bytes x takes, entry and value.
func (x xattr) size() int { return xattrEntry + pad4(len(x.name)) + pad4(len(x.value)) }

// compareXattr orders attributes as they are sorted in a block.
func compareXattr(a, b xattr) int {
	if a.space != b.space {
		return int(a.space) - int(b.space)
	}
	if len(a.name) != len(b.name) {
		return len(a.name) - len(b.name)
	}
	return strings.Compare(a.name, b.name)
}

// storeXattr turns an attribute as xattr(7) has it into one to store.
func storeXattr(name string, value []byte) (xattr, error) {
	for _, s := range xattrSpaces {
		rest, ok := strings.CutPrefix(name, s.prefix)
		isACL := isACLSpace(s.index)
		if !ok || isACL != (rest == "") || len(rest) > maxName || strings.ContainsRune(rest, 0) {
			continue
		}
		if !isACL {
			return xattr{s.index, rest, value}, nil
		}
		acl, err := storeACL(value)
		return xattr{s.index, "", acl}, err
	}
	return xattr{}, syscall.EOPNOTSUPP
}

// loadXattr is the inverse of storeXattr.
func loadXattr(x xattr) (name string, value []byte, err error) {
	for _, s := range xattrSpaces {
		if s.index != x.space {
			continue
		}
		if !isACLSpace(s.index) {
			return s.prefix + x.name, x.value, nil
		}
		value, err := loadACL(x.value)
		return s.prefix, value, err
	}
	return "", nil, fmt.Errorf("name space %d", x.space)
}

// Xattrs returns the extended attributes of the file ino by their full names,
// their values as getxattr returns them.
func (f *FS) Xattrs(ctx context.Context, ino vfs.Ino) (map[string][]byte, error) {
	if err := f.begin(ctx); err != nil {
		return nil, err
	}
	n, err := f.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	m := make(map[string][]byte)
	if area := f.xattrArea(n); len(area) > 4 && le.Uint32(area) == xattrMagic {
		if err := f.loadXattrs(m, n, n.blk, area[4:], 0); err != nil {
			return nil, err
		}
	}
	b, err := f.aclBlock(ctx, n)
	if err != nil || b == nil {
		return m, err
	}
	return m, f.loadXattrs(m, n, b, b.data, xattrHead)
}

// xattrArea returns the part of n that attributes may be in.
func (f *FS) xattrArea(n inode) []byte {
	if len(n.raw) <= inodeBase || n.u16(inExtra) == 0 {
		return nil
	}
	return n.raw[inodeBase+int(n.u16(inExtra)):]
}

// aclBlock returns the checked attribute block of n, nil if it has none.
func (f *FS) aclBlock(ctx context.Context, n inode) (*block, error) {
	no := n.aclBlock()
	if no == 0 {
		return nil, nil
	}
	if !f.fileRun(run{no, 1}) {
		return nil, f.inodeCorrupt(n, "i_file_acl", "block %d", no)
	}
	b, err := f.cache.get(ctx, no)
	if err != nil {
		return nil, fmt.Errorf("read attributes of inode %d: %w", n.no, err)
	}
	if le.Uint32(b.data) != xattrMagic || le.Uint32(b.data[4:]) == 0 || le.Uint32(b.data[8:]) != 1 {
		return nil, f.xattrCorrupt(n, b, "h_magic", "not an attribute block")
	}
	return b, nil
}

func (f *FS) xattrCorrupt(n inode, b *block, field, format string, args ...any) error {
	return corrupt(fmt.Sprintf("attributes of inode %d", n.no), f.sb.off(b.no), field, format, args...)
}

// loadXattrs adds to m what is in area, whose entries begin at off.
func (f *FS) loadXattrs(m map[string][]byte, n inode, b *block, area []byte, off int) error {
	for {
		if len(area)-off < 4 {
			return f.xattrCorrupt(n, b, "e_name_len", "the entries do not end")
		}
		if le.Uint32(area[off:]) == 0 {
			return nil
		}
		if len(area)-off < xattrEntry || len(area)-off-xattrEntry < pad4(int(area[off])) {
			return f.xattrCorrupt(n, b, "e_name_len", "%d at %d", area[off], off)
		}
		e := area[off:]
		at, size := int(le.Uint16(e[2:])), le.Uint32(e[8:])
		if le.Uint32(e[4:]) != 0 || at > len(area) || uint64(size) > uint64(len(area)-at) {
			return f.xattrCorrupt(n, b, "e_value_offs", "%d bytes at %d", size, at)
		}
		x := xattr{e[1], string(e[xattrEntry:][:e[0]]), slices.Clone(area[at:][:size])}
		name, value, err := loadXattr(x)
		if err != nil {
			return f.xattrCorrupt(n, b, "e_name_index", "%v", err)
		}
		m[name] = value
		off += xattrEntry + pad4(int(e[0]))
	}
}

// SetXattrs makes m the extended attributes of the file ino, by their full
// names and with values as setxattr takes them. It fails with
// syscall.EOPNOTSUPP for names outside the known name spaces, and with
// syscall.ENOSPC if they do not fit into the inode and one block; nothing is
// changed then.
func (f *FS) SetXattrs(ctx context.Context, ino vfs.Ino, m map[string][]byte) error {
	if err := f.begin(ctx); err != nil {
		return err
	}
	n, err := f.inode(ctx, ino)
	if err != nil {
		return err
	}
	var all []xattr
	for _, name := range slices.Sorted(maps.Keys(m)) {
		x, err := storeXattr(name, m[name])
		if err != nil {
			return fmt.Errorf("set attribute %q of inode %d: %w", name, ino, err)
		}
		all = append(all, x)
	}
	slices.SortFunc(all, compareXattr)
	area := f.xattrArea(n)
	inside, outside := splitXattrs(all, len(area)-8)
	if sizeXattrs(outside) > int(f.sb.blockSize)-xattrHead-4 {
		return fmt.Errorf("set %d attributes of %d bytes of inode %d: %w", len(all), sizeXattrs(all), ino, syscall.ENOSPC)
	}
	if err := f.dropACLBlock(ctx, n); err != nil {
		return err
	}
	clear(area)
	n.blk.dirty = true
	if len(inside) > 0 {
		le.PutUint32(area, xattrMagic)
		packXattrs(area[4:], 0, inside)
	}
	return f.putACLBlock(ctx, n, outside)
}

func sizeXattrs(all []xattr) int {
	sum := 0
	for _, x := range all {
		sum += x.size()
	}
	return sum
}

// splitXattrs returns the attributes that fit into room bytes, as many as do
// in their order, and the rest.
func splitXattrs(all []xattr, room int) (inside, outside []xattr) {
	for _, x := range all {
		if x.size() <= room {
			room -= x.size()
			inside = append(inside, x)
		} else {
			outside = append(outside, x)
		}
	}
	return inside, outside
}

// packXattrs stores attributes in area, whose entries begin at off.
func packXattrs(area []byte, off int, all []xattr) {
	end := len(area)
	for _, x := range all {
		end -= pad4(len(x.value))
		copy(area[end:], x.value)
		e := area[off:]
		e[0], e[1] = byte(len(x.name)), x.space
		if len(x.value) > 0 {
			le.PutUint16(e[2:], uint16(end))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		copy(e[xattrEntry:], x.name)
		off += xattrEntry + pad4(len(x.name))
	}
}

// putACLBlock gives n an attribute block with what is in all, if anything.
func (f *FS) putACLBlock(ctx context.Context, n inode, all []xattr) error {
	if len(all) == 0 {
		return nil
	}
	b, err := f.allocMeta(ctx)
	if err != nil {
		return err
	}
	le.PutUint32(b.data, xattrMagic)
	le.PutUint32(b.data[4:], 1)
	le.PutUint32(b.data[8:], 1)
	packXattrs(b.data, xattrHead, all)
	hash, off := uint32(0), xattrHead
	for _, x := range all {
		h := x.hash()
		le.PutUint32(b.data[off+12:], h)
		hash = hash<<16 ^ hash>>16 ^ h
		off += xattrEntry + pad4(len(x.name))
	}
	le.PutUint32(b.data[12:], hash)
	n.putACLBlock(b.no)
	return f.addBlocks(n, 1)
}

// hash returns the hash of an entry in a block.
func (x xattr) hash() uint32 {
	h := uint32(0)
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	padded := make([]byte, pad4(len(x.value)))
	copy(padded, x.value)
	for ; len(padded) > 0; padded = padded[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(padded)
	}
	return h
}

// dropACLBlock takes the attribute block away from n, and frees it unless
// other inodes share it.
func (f *FS) dropACLBlock(ctx context.Context, n inode) error {
	b, err := f.aclBlock(ctx, n)
	if err != nil || b == nil {
		return err
	}
	n.putACLBlock(0)
	if err := f.addBlocks(n, -1); err != nil {
		return err
	}
	if shared := le.Uint32(b.data[4:]); shared > 1 {
		le.PutUint32(b.data[4:], shared-1)
		b.dirty = true
		return nil
	}
	return f.freeRun(ctx, run{b.no, 1})
}
