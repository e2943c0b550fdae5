// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"sort"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// The extent tree of a file: nodes of a header and entries of 12 bytes each,
// the root in i_block. Little-endian; the offsets are durable.
//
//	header  0 u16 magic, 2 u16 entries, 4 u16 room for entries, 6 u16 depth
//	leaf    0 u32 first block of the file, 4 u16 length, 6 u16 and 8 u32 block
//	index   0 u32 first block of the file, 4 u32 and 8 u16 block of the child
//
// A length over 32768 is that of an extent allocated but not written, plus
// 32768: it reads as zeroes.
const (
	extentMagic  = 0xf30a
	extentSize   = 12
	maxExtentLen = 32768
	maxDepth     = 5
	endOfFile    = uint64(1) << 32 // block numbers in a file have 32 bits
)

// A node of an extent tree, checked.
type node struct {
	f   *FS
	blk *block // holds it
	raw []byte // from its header to the end of its room
}

func (n node) entries() int   { return int(le.Uint16(n.raw[2:])) }
func (n node) depth() int     { return int(le.Uint16(n.raw[6:])) }
func (n node) full() bool     { return n.entries() == int(le.Uint16(n.raw[4:])) }
func (n node) at(i int) entry { return entry(n.raw[extentSize*(i+1):][:extentSize]) }

// init makes n an empty node.
func (n node) init(depth int) {
	clear(n.raw)
	le.PutUint16(n.raw, extentMagic)
	le.PutUint16(n.raw[4:], uint16(len(n.raw)/extentSize-1))
	le.PutUint16(n.raw[6:], uint16(depth))
	n.blk.dirty = true
}

// push adds e behind the last entry. The node must not be full.
func (n node) push(e entry) {
	copy(n.at(n.entries()), e)
	le.PutUint16(n.raw[2:], uint16(n.entries()+1))
	n.blk.dirty = true
}

// find returns the last entry that does not begin after file block at, -1 if
// there is none.
func (n node) find(at uint64) int {
	return sort.Search(n.entries(), func(i int) bool { return n.at(i).first() > at }) - 1
}

// An entry of a node.
type entry []byte

func (e entry) first() uint64 { return uint64(le.Uint32(e)) }

// child returns the block of an index entry.
func (e entry) child() uint64 { return uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32 }

// blocks returns where the extent of a leaf's entry lies and whether it was
// written.
func (e entry) blocks() (r run, written bool) {
	r = run{uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32, uint64(le.Uint16(e[4:]))}
	if r.n > maxExtentLen {
		return run{r.start, r.n - maxExtentLen}, false
	}
	return r, true
}

func leafEntry(first uint64, r run) entry {
	e := make(entry, extentSize)
	le.PutUint32(e, uint32(first))
	le.PutUint16(e[4:], uint16(r.n))
	le.PutUint16(e[6:], uint16(r.start>>32))
	le.PutUint32(e[8:], uint32(r.start))
	return e
}

func indexEntry(first, child uint64) entry {
	e := make(entry, extentSize)
	le.PutUint32(e, uint32(first))
	le.PutUint32(e[4:], uint32(child))
	le.PutUint16(e[8:], uint16(child>>32))
	return e
}

// initExtents gives ino an empty extent tree.
func (f *FS) initExtents(ino inode) {
	f.rootNode(ino).init(0)
	ino.put32(inFlags, ino.u32(inFlags)|flagExtents)
}

func (f *FS) rootNode(ino inode) node {
	return node{f, ino.blk, ino.raw[inBlock : inBlock+inBlockLen]}
}

// root returns the checked root of the extent tree of ino.
func (f *FS) root(ino inode) (node, error) {
	if !ino.has(flagExtents) {
		return node{}, f.inodeCorrupt(ino, "i_flags", "%#x: block maps of ext2 are not supported", ino.u32(inFlags))
	}
	n := f.rootNode(ino)
	depth := n.depth()
	if depth > maxDepth {
		return node{}, f.inodeCorrupt(ino, "eh_depth", "%d", depth)
	}
	return n, n.check(ino, depth, 0, endOfFile)
}

// child returns the checked child of n at index i.
func (n node) child(ctx context.Context, ino inode, i int, end uint64) (node, error) {
	e := n.at(i)
	if i+1 < n.entries() {
		end = min(end, n.at(i+1).first())
	}
	if !n.f.fileRun(run{e.child(), 1}) {
		return node{}, n.f.inodeCorrupt(ino, "ei_leaf", "block %d", e.child())
	}
	b, err := n.f.cache.get(ctx, e.child())
	if err != nil {
		return node{}, fmt.Errorf("read extents of inode %d: %w", ino.no, err)
	}
	c := n.f.blockNode(b)
	as := role{ino.no, n.depth() - 1, e.first(), end}
	if b.checked == as {
		return c, nil
	}
	err = c.check(ino, as.depth, as.from, as.end)
	if err == nil {
		b.checked = as
	}
	return c, err
}

// A role is what a block was checked as: a node of a file's extent tree, of a
// depth, that maps blocks [from, end). What it gains later is checked before.
type role struct {
	ino       vfs.Ino
	depth     int
	from, end uint64
}

func (f *FS) blockNode(b *block) node {
	return node{f, b, b.data[:len(b.data)/extentSize*extentSize]}
}

// check checks that n has the given depth and maps blocks [from, end) of the
// file only, in order: the nodes of a checked tree cannot form a circle.
func (n node) check(ino inode, depth int, from, end uint64) error {
	bad := func(field, format string, args ...any) error {
		return corrupt(fmt.Sprintf("extents of inode %d", ino.no), n.f.sb.off(n.blk.no), field, format, args...)
	}
	room := int(le.Uint16(n.raw[4:]))
	switch {
	case le.Uint16(n.raw) != extentMagic:
		return bad("eh_magic", "%#x, want %#x", le.Uint16(n.raw), extentMagic)
	case room == 0 || room > len(n.raw)/extentSize-1:
		return bad("eh_max", "%d", room)
	case n.entries() > room:
		return bad("eh_entries", "%d in a node with room for %d", n.entries(), room)
	case n.depth() != depth:
		return bad("eh_depth", "%d, want %d", n.depth(), depth)
	case n.entries() == 0 && n.blk != ino.blk:
		return bad("eh_entries", "none")
	}
	for i := range n.entries() {
		e := n.at(i)
		if e.first() < from || e.first() >= end {
			return bad("ee_block", "%d is outside [%d, %d)", e.first(), from, end)
		}
		from = e.first() + 1
		if depth > 0 {
			continue
		}
		r, _ := e.blocks()
		from = e.first() + r.n
		if r.n == 0 || from > end {
			return bad("ee_len", "%d", r.n)
		}
		if !n.f.fileRun(r) {
			return bad("ee_start", "blocks %d to %d belong to no file", r.start, r.end()-1)
		}
	}
	return nil
}

// A mapping says where file blocks lie: at blocks of the device, or nowhere if
// they are a hole or were not written.
type mapping struct {
	run
	hole bool
}

// lookup returns where file block at and those that follow it without a break
// lie.
func (f *FS) lookup(ctx context.Context, ino inode, at uint64) (mapping, error) {
	n, err := f.root(ino)
	end := endOfFile
	for err == nil {
		i := n.find(at)
		if i+1 < n.entries() {
			end = min(end, n.at(i+1).first())
		}
		if i < 0 {
			return mapping{run{0, end - at}, true}, nil
		}
		if n.depth() == 0 {
			return n.at(i).mapping(at, end), nil
		}
		n, err = n.child(ctx, ino, i, end)
	}
	return mapping{}, err
}

// mapping maps file block at, which is in a leaf's entry e or behind it; what
// follows begins at end.
func (e entry) mapping(at, end uint64) mapping {
	r, written := e.blocks()
	skip := at - e.first()
	if skip >= r.n {
		return mapping{run{0, end - at}, true}
	}
	return mapping{run{r.start + skip, r.n - skip}, !written}
}
