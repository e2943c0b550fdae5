// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"syscall"
)

// appendExtent maps the file blocks from first, behind all others, to r, which
// the caller has allocated.
func (f *FS) appendExtent(ctx context.Context, ino inode, first uint64, r run) error {
	if first+r.n >= endOfFile {
		return fmt.Errorf("map block %d of inode %d: %w", first+r.n, ino.no, syscall.EFBIG)
	}
	path, err := f.lastPath(ctx, ino)
	if err != nil {
		return err
	}
	if err := f.addBlocks(ino, int64(r.n)); err != nil {
		return err
	}
	leaf := path[len(path)-1]
	if k := leaf.entries(); k > 0 {
		last, _ := leaf.at(k - 1).blocks()
		if end := leaf.at(k-1).first() + last.n; end > first {
			return f.inodeCorrupt(ino, "i_size", "blocks up to %d are mapped behind it", end)
		}
		if leaf.at(k-1).extend(first, r) {
			leaf.blk.dirty = true
			return nil
		}
	}
	return f.pushExtent(ctx, ino, path, leafEntry(first, r))
}

// extend makes e include r as the file blocks from first if they follow it in
// the file and on the device.
func (e entry) extend(first uint64, r run) bool {
	have, written := e.blocks()
	if !written || first != e.first()+have.n || r.start != have.end() || have.n+r.n > maxExtentLen {
		return false
	}
	le.PutUint16(e[4:], uint16(have.n+r.n))
	return true
}

// lastPath returns the nodes from the root to the last leaf.
func (f *FS) lastPath(ctx context.Context, ino inode) ([]node, error) {
	n, err := f.root(ino)
	path := make([]node, 0, maxDepth+1)
	for err == nil {
		path = append(path, n)
		if n.depth() == 0 {
			return path, nil
		}
		if n.entries() == 0 {
			return nil, f.inodeCorrupt(ino, "eh_entries", "an index without entries")
		}
		n, err = n.child(ctx, ino, n.entries()-1, endOfFile)
	}
	return nil, err
}

// pushExtent adds the leaf entry e behind the last of the nodes in path, which
// may need new nodes or another level.
func (f *FS) pushExtent(ctx context.Context, ino inode, path []node, e entry) error {
	for d := len(path) - 1; d >= 0; d-- {
		if path[d].full() {
			continue
		}
		for depth := range path[d].depth() {
			n, err := f.newNode(ctx, ino, depth)
			if err != nil {
				return err
			}
			n.push(e)
			e = indexEntry(e.first(), n.blk.no)
		}
		path[d].push(e)
		return nil
	}
	root, err := f.deepen(ctx, ino, path[0])
	if err != nil {
		return err
	}
	return f.pushExtent(ctx, ino, append(root, path[1:]...), e)
}

// deepen moves the entries of root to a new node below it. It returns both.
func (f *FS) deepen(ctx context.Context, ino inode, root node) ([]node, error) {
	depth := root.depth()
	if depth == maxDepth {
		return nil, fmt.Errorf("map another extent of inode %d: %w", ino.no, syscall.EFBIG)
	}
	n, err := f.newNode(ctx, ino, depth)
	if err != nil {
		return nil, err
	}
	for i := range root.entries() {
		n.push(root.at(i))
	}
	root.init(depth + 1)
	root.push(indexEntry(n.at(0).first(), n.blk.no))
	return []node{root, n}, nil
}

func (f *FS) newNode(ctx context.Context, ino inode, depth int) (node, error) {
	b, err := f.allocMeta(ctx)
	if err != nil {
		return node{}, err
	}
	n := f.blockNode(b)
	n.init(depth)
	return n, f.addBlocks(ino, 1)
}

// truncate frees all blocks of ino, which has an extent tree, and makes it
// empty.
func (f *FS) truncate(ctx context.Context, ino inode) error {
	root, err := f.root(ino)
	if err != nil {
		return err
	}
	if err := f.freeTree(ctx, ino, root, endOfFile); err != nil {
		return err
	}
	ino.putSize(0)
	f.initExtents(ino)
	return nil
}

// freeTree frees what n, which maps blocks up to end, leads to.
func (f *FS) freeTree(ctx context.Context, ino inode, n node, end uint64) error {
	for i := range n.entries() {
		r, _ := n.at(i).blocks()
		if n.depth() > 0 {
			c, err := n.child(ctx, ino, i, end)
			if err != nil {
				return err
			}
			upTo := end
			if i+1 < n.entries() {
				upTo = n.at(i + 1).first()
			}
			if err := f.freeTree(ctx, ino, c, upTo); err != nil {
				return err
			}
			r = run{c.blk.no, 1}
		}
		if err := f.freeRun(ctx, r); err != nil {
			return err
		}
		if err := f.addBlocks(ino, -int64(r.n)); err != nil {
			return err
		}
	}
	return nil
}
