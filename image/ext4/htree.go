// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// The index of a large directory: a tree of one or two levels whose leaves are
// ordinary directory blocks, each with the names of a range of hashes. To one
// who does not know of it, its nodes look like blocks without names. The
// offsets are durable.
//
//	root  0 "." and "..", 24 u32 zero, 28 u8 hash version, 29 u8 8,
//	      30 u8 levels below the root, 31 u8 zero, 32 entries
//	node  0 an entry of inode 0, 8 entries
//
// An entry is u32 hash, u32 block of the directory; in place of the hash of
// the first, which is 0, are u16 room for entries, u16 entries. The lowest bit
// of a hash says that names of that hash are in the leaf before, too.
const (
	rootInfo    = 24
	rootEntries = 32
	nodeEntries = 8
	indexSize   = 8
	maxLevels   = 1 // below the root, without the large_dir feature
)

// A frame is a node of an index on the way to a leaf.
type frame struct {
	blk *block
	raw []byte // the entries and the room for more
	at  int    // the entry taken
}

func (x frame) count() int        { return int(le.Uint16(x.raw[2:])) }
func (x frame) full() bool        { return x.count() == x.room() }
func (x frame) room() int         { return len(x.raw) / indexSize }
func (x frame) leaf(i int) uint64 { return uint64(le.Uint32(x.raw[indexSize*i+4:]) & 0x0fffffff) }
func (x frame) hash(i int) uint32 {
	if i == 0 {
		return 0
	}
	return le.Uint32(x.raw[indexSize*i:])
}

func (x frame) setCount(n int) {
	le.PutUint16(x.raw, uint16(x.room()))
	le.PutUint16(x.raw[2:], uint16(n))
	x.blk.dirty = true
}

func (x frame) setLeaf(i int, leaf uint64) { le.PutUint32(x.raw[indexSize*i+4:], uint32(leaf)) }

// seek sets at to the entry whose range h is in.
func (x *frame) seek(h uint32) {
	x.at = sort.Search(x.count()-1, func(i int) bool { return x.hash(i+1) > h })
}

// add puts an entry behind the one taken. The frame must not be full.
func (x frame) add(hash uint32, leaf uint64) {
	i, n := x.at+1, x.count()
	copy(x.raw[indexSize*(i+1):indexSize*(n+1)], x.raw[indexSize*i:])
	le.PutUint32(x.raw[indexSize*i:], hash)
	x.setLeaf(i, leaf)
	x.setCount(n + 1)
}

// A treePath leads to a leaf of the index of a directory.
type treePath struct {
	f       *FS
	dir     inode
	version uint8 // of the hash
	frames  []frame
}

var errIndex = errors.New("bad index")

// openIndex returns the root of the index of dir.
func (f *FS) openIndex(ctx context.Context, dir inode) (treePath, int, error) {
	b, err := f.dirBlock(ctx, dir, 0)
	if err != nil {
		return treePath{}, 0, err
	}
	version, length, levels := b.data[rootInfo+4], b.data[rootInfo+5], int(b.data[rootInfo+6])
	if version > hashTEA || length != indexSize || levels > maxLevels || b.data[rootInfo+7] != 0 || le.Uint32(b.data[rootInfo:]) != 0 {
		return treePath{}, 0, f.dirCorrupt(dir, b, fmt.Errorf("%w: hash version %d, info length %d, %d levels", errIndex, version, length, levels))
	}
	if le.Uint32(f.sb.raw[sbFlags:])&flagUnsignedHash != 0 {
		version += hashLegacyUnsigned
	}
	p := treePath{f: f, dir: dir, version: version}
	return p, levels, p.push(b, rootEntries)
}

// push adds the node b, whose entries begin at off, to the path.
func (p *treePath) push(b *block, off int) error {
	x := frame{blk: b, raw: b.data[off:]}
	if n := x.count(); n == 0 || n > x.room() || int(le.Uint16(x.raw)) != x.room() {
		return p.f.dirCorrupt(p.dir, b, fmt.Errorf("%w: %d entries in a node with room for %d", errIndex, n, le.Uint16(x.raw)))
	}
	p.frames = append(p.frames, x)
	return nil
}

// pathTo returns the path to the leaf where name belongs, and its hash.
func (f *FS) pathTo(ctx context.Context, dir inode, name string) (p treePath, h uint32, err error) {
	p, levels, err := f.openIndex(ctx, dir)
	if err != nil {
		return p, 0, err
	}
	h = nameHash(name, p.version, f.sb.hashSeed)
	p.last().seek(h)
	for range levels {
		if err := p.descend(ctx); err != nil {
			return p, 0, err
		}
		p.last().seek(h)
	}
	return p, h, nil
}

func (p *treePath) last() *frame { return &p.frames[len(p.frames)-1] }

// block returns the block of the directory that the last frame leads to.
func (p *treePath) block(ctx context.Context) (*block, error) {
	i := p.last().leaf(p.last().at)
	if i == 0 {
		return nil, p.f.dirCorrupt(p.dir, p.last().blk, fmt.Errorf("%w: it leads to its root", errIndex))
	}
	return p.f.dirBlock(ctx, p.dir, i)
}

// descend adds the node that the last frame leads to.
func (p *treePath) descend(ctx context.Context) error {
	b, err := p.block(ctx)
	if err != nil {
		return err
	}
	return p.push(b, nodeEntries)
}

// next moves to the next leaf if names of hash h go on there.
func (p *treePath) next(ctx context.Context, h uint32) (bool, error) {
	levels := len(p.frames)
	for p.last().at+1 >= p.last().count() {
		if len(p.frames) == 1 {
			return false, nil
		}
		p.frames = p.frames[:len(p.frames)-1]
	}
	p.last().at++
	if p.last().hash(p.last().at)&^1 != h {
		return false, nil
	}
	for len(p.frames) < levels {
		if err := p.descend(ctx); err != nil {
			return false, err
		}
	}
	return true, nil
}

// findIndexed is find in a directory with an index.
func (f *FS) findIndexed(ctx context.Context, dir inode, name string) (slot, error) {
	p, h, err := f.pathTo(ctx, dir, name)
	for more := true; more && err == nil; {
		b, err := p.block(ctx)
		if err != nil {
			return slot{}, err
		}
		if s, err := f.findIn(dir, b, name); err != nil || s.blk != nil {
			return s, err
		}
		more, err = p.next(ctx, h)
		if err != nil {
			return slot{}, err
		}
	}
	if err != nil {
		return slot{}, err
	}
	return slot{}, fs.ErrNotExist
}

// insertIndexed is insert in a directory with an index.
func (f *FS) insertIndexed(ctx context.Context, dir inode, name string, ino vfs.Ino, t vfs.Type) error {
	for {
		p, _, err := f.pathTo(ctx, dir, name)
		if err != nil {
			return err
		}
		b, err := p.block(ctx)
		if err != nil {
			return err
		}
		if ok, err := f.insertIn(dir, b, name, ino, t); ok || err != nil {
			return err
		}
		// Every round leaves fewer names in the leaf.
		if err := p.splitLeaf(ctx, b); err != nil {
			return err
		}
	}
}

// A hashed entry.
type hashed struct {
	hash uint32
	dirent
}

// splitLeaf moves the names of the upper half of the hashes in the leaf b to a
// new leaf, or just joins its free space if there are not two names.
func (p *treePath) splitLeaf(ctx context.Context, b *block) error {
	names, err := p.sorted(b)
	if err != nil {
		return err
	}
	if len(names) < 2 {
		fillNames(b.data, plain(names))
		b.dirty = true
		return nil
	}
	if err := p.makeRoom(ctx); err != nil {
		return err
	}
	upper, i, err := p.f.appendDirBlock(ctx, p.dir)
	if err != nil {
		return err
	}
	k := half(names, len(b.data))
	hash := names[k].hash
	if names[k-1].hash == hash {
		hash |= 1
	}
	fillNames(upper.data, plain(names[k:]))
	fillNames(b.data, plain(names[:k]))
	b.dirty = true
	p.last().add(hash, i)
	return nil
}

// sorted returns copies of the names in the leaf b in the order of their
// hashes.
func (p *treePath) sorted(b *block) ([]hashed, error) {
	leaf := &block{no: b.no, data: bytes.Clone(b.data)}
	var names []hashed
	for d, err := range p.f.blockEntries(p.dir, leaf) {
		if err != nil {
			return nil, err
		}
		names = append(names, hashed{nameHash(string(d.name()), p.version, p.f.sb.hashSeed), d})
	}
	slices.SortStableFunc(names, func(a, b hashed) int { return int(int64(a.hash) - int64(b.hash)) })
	return names, nil
}

func plain(names []hashed) []dirent {
	d := make([]dirent, len(names))
	for i := range names {
		d[i] = names[i].dirent
	}
	return d
}

// half returns how many of the names, at least one and not all, fill half a
// block of size bytes.
func half(names []hashed, size int) int {
	k, sum := 0, 0
	for k < len(names)-1 && (k == 0 || sum+names[k].used() <= size/2) {
		sum += names[k].used()
		k++
	}
	return k
}

// makeRoom makes sure that another entry fits into the last frame.
func (p *treePath) makeRoom(ctx context.Context) error {
	if !p.last().full() {
		return nil
	}
	if len(p.frames) == 1 {
		return p.deepen(ctx)
	}
	if p.frames[0].full() {
		return fmt.Errorf("index of directory %d: %w", p.dir.no, syscall.ENOSPC)
	}
	return p.splitNode(ctx)
}

// newNode adds a node to the directory, and returns it and which block it is.
func (p *treePath) newNode(ctx context.Context) (frame, uint64, error) {
	b, i, err := p.f.appendDirBlock(ctx, p.dir)
	if err != nil {
		return frame{}, 0, err
	}
	le.PutUint16(b.data[4:], uint16(len(b.data)))
	return frame{blk: b, raw: b.data[nodeEntries:]}, i, nil
}

// deepen moves the entries of the root to a new node below it.
func (p *treePath) deepen(ctx context.Context) error {
	n, i, err := p.newNode(ctx)
	if err != nil {
		return err
	}
	root := p.last()
	n.at = root.at
	copy(n.raw, root.raw)
	n.setCount(root.count())
	clear(root.raw)
	root.at = 0
	root.setLeaf(0, i)
	root.setCount(1)
	root.blk.data[rootInfo+6] = 1
	p.frames = append(p.frames, n)
	return nil
}

// splitNode moves the upper half of the last frame to a new node.
func (p *treePath) splitNode(ctx context.Context) error {
	n, i, err := p.newNode(ctx)
	if err != nil {
		return err
	}
	low := p.last()
	count := low.count()
	k := count / 2
	hash := low.hash(k)
	copy(n.raw, low.raw[indexSize*k:indexSize*count])
	n.setCount(count - k)
	clear(low.raw[indexSize*k:])
	low.setCount(k)
	p.frames[0].add(hash, i)
	if low.at >= k {
		n.at = low.at - k
		*low = n
	}
	return nil
}

// makeIndex turns the directory dir of one block into one with an index of
// one leaf.
func (f *FS) makeIndex(ctx context.Context, dir inode) error {
	root, err := f.dirBlock(ctx, dir, 0)
	if err != nil {
		return err
	}
	dots, names, err := f.splitDots(dir, root)
	if err != nil {
		return err
	}
	leaf, i, err := f.appendDirBlock(ctx, dir)
	if err != nil {
		return err
	}
	fillNames(leaf.data, names)
	clear(root.data)
	putDots(root.data, dots[0].ino(), dots[1].ino(), dots[0].kind())
	root.data[rootInfo+4], root.data[rootInfo+5] = min(f.sb.hash, hashTEA), indexSize
	x := frame{blk: root, raw: root.data[rootEntries:]}
	x.setLeaf(0, i)
	x.setCount(1)
	dir.put32(inFlags, dir.u32(inFlags)|flagIndex)
	return nil
}

// splitDots returns copies of "." and ".." and of the other names in the first
// block of the directory dir.
func (f *FS) splitDots(dir inode, b *block) (dots, names []dirent, err error) {
	old := &block{no: b.no, data: bytes.Clone(b.data)}
	for d, err := range f.blockEntries(dir, old) {
		switch {
		case err != nil:
			return nil, nil, err
		case d.isDots():
			dots = append(dots, d)
		default:
			names = append(names, d)
		}
	}
	if len(dots) != 2 || string(dots[0].name()) != "." || string(dots[1].name()) != ".." {
		return nil, nil, f.dirCorrupt(dir, b, fmt.Errorf(`%w: "." and ".." are not where they should be`, errEntry))
	}
	return dots, names, nil
}
