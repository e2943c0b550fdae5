// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Sync writes everything to the device. It fails with syscall.EBUSY while a
// file is being written.
func (f *FS) Sync(ctx context.Context) error {
	if f.open {
		return fmt.Errorf("sync EROFS: a file is being written: %w", syscall.EBUSY)
	}
	if err := f.sync(ctx); err != nil {
		return fmt.Errorf("sync EROFS: %w", err)
	}
	return f.dev.Sync(ctx)
}

func (f *FS) sync(ctx context.Context) error {
	if err := f.out.Flush(ctx); err != nil {
		return err
	}
	if len(f.changed()) == 0 && f.next == f.m.sb.blocks {
		return nil
	}
	if err := f.settle(ctx); err != nil {
		return err
	}
	changed := f.changed()
	if err := f.arrange(changed); err != nil {
		return err
	}
	if err := f.emit(ctx, changed); err != nil {
		return err
	}
	f.forget(changed)
	return f.putSuper(ctx)
}

// changed returns the files that differ from the device, by their numbers.
func (f *FS) changed() []*node {
	var all []*node
	for _, n := range f.nodes {
		if n != nil && n.draft != nil {
			all = append(all, n)
		}
	}
	return all
}

// putSuper stores the superblock.
func (f *FS) putSuper(ctx context.Context) error {
	s := &f.m.sb
	s.blocks, s.inodes = f.next, uint64(f.inodes)
	area := make([]byte, blockSize-superOff)
	if err := readFull(ctx, f.dev, area, superOff); err != nil {
		return err
	}
	s.put(area)
	if _, err := f.dev.WriteAt(ctx, area, superOff); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}

// forget lets go of what has been written.
func (f *FS) forget(changed []*node) {
	for _, n := range changed {
		if n.draft.plan.move {
			if n.placed {
				delete(f.placed, n.nid)
			}
			n.nid, n.placed = f.nid(n), true
			f.placed[n.nid] = n
		}
	}
	for _, n := range changed {
		n.draft = nil
	}
	f.m.sb.root = f.nodes[0].nid
	f.m.cache.clear()
	f.held, f.inline = 0, 0
}

// settle decides which of the changed files move, and changes all directories
// that name those.
func (f *FS) settle(ctx context.Context) error {
	lost := make(map[uint64]*node) // files that move and have names in places unknown
	for work := f.changed(); len(work) > 0; {
		n := work[0]
		work = work[1:]
		d := n.draft
		d.extended = d.extended || !d.compactable(&f.m.sb)
		d.plan.move = !n.placed
		if n.placed && !d.fits() {
			d.plan.move = true
			more, err := f.dislodge(ctx, n, lost)
			if err != nil {
				return err
			}
			work = append(work, more...)
		}
		if len(work) == 0 && len(lost) > 0 {
			more, err := f.findNames(ctx, lost)
			if err != nil {
				return err
			}
			clear(lost)
			work = more
		}
	}
	return nil
}

// fits reports whether d can stay in its place. What can go into blocks of its
// own needs no room there.
func (d *draft) fits() bool {
	need := d.head()
	if !d.loaded && !d.isWhole() {
		need += d.gap() + int64(len(d.body))
	}
	return need <= d.span
}

// isWhole reports whether the body of d is all of its content.
func (d *draft) isWhole() bool { return d.layout != layoutChunks && d.size == int64(len(d.body)) }

// gap returns how many bytes lie between the inode with its attributes and the
// body.
func (d *draft) gap() int64 {
	if d.layout == layoutChunks && d.hasContent() && d.data&chunkIndexes != 0 {
		return -d.head() & 7
	}
	return 0
}

// dislodge changes the directories that have to know that n moves, and returns
// those. A file with names that nobody knows becomes one of the lost.
func (f *FS) dislodge(ctx context.Context, n *node, lost map[uint64]*node) (more []*node, err error) {
	var dirs []*node
	if n.draft.isDir() {
		dirs = append(dirs, n)
		below, err := f.below(ctx, n)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, below...)
	}
	switch {
	case n.ino == rootIno:
	case n.draft.isDir() || n.draft.was.links <= 1:
		dirs = append(dirs, n.parent)
	default:
		lost[n.nid] = n
	}
	for _, dir := range dirs {
		if more, err = f.rewrite(ctx, dir, more); err != nil {
			return nil, err
		}
	}
	return more, nil
}

// rewrite loads the directory n, and appends it to all if it was not. A
// directory that is gone has no names any more.
func (f *FS) rewrite(ctx context.Context, n *node, all []*node) ([]*node, error) {
	if f.nodes[n.ino-rootIno] != n || n.draft != nil && n.draft.loaded {
		return all, nil
	}
	_, err := f.load(ctx, n)
	return append(all, n), err
}

// below returns the directories in the directory n.
func (f *FS) below(ctx context.Context, n *node) (dirs []*node, err error) {
	d, err := f.load(ctx, n)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(d.entries)) {
		if d.entries[name].kind != vfs.TypeDirectory {
			continue
		}
		dir, err := f.find(ctx, n, name)
		if err != nil {
			return nil, err
		}
		in, err := f.inode(ctx, dir)
		if err != nil {
			return nil, err
		}
		if in.isDir() {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// findNames looks through the whole tree for directories that name one of the
// lost files, loads and returns them. That is rare: hard links that a lower
// layer made, to a file that outgrows its place.
func (f *FS) findNames(ctx context.Context, lost map[uint64]*node) (found []*node, err error) {
	seen := map[*node]bool{f.nodes[0]: true}
	for todo := []*node{f.nodes[0]}; len(todo) > 0; {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		below, hit, err := f.look(ctx, n, lost)
		if err != nil {
			return nil, err
		}
		if hit {
			if found, err = f.rewrite(ctx, n, found); err != nil {
				return nil, err
			}
		}
		for _, dir := range below {
			if !seen[dir] {
				seen[dir] = true
				todo = append(todo, dir)
			}
		}
	}
	return found, nil
}

// look returns the directories in the directory n, and whether it names one of
// the lost files.
func (f *FS) look(ctx context.Context, n *node, lost map[uint64]*node) (below []*node, hit bool, err error) {
	if n.draft != nil && n.draft.loaded {
		below, err = f.below(ctx, n)
		return below, false, err
	}
	in, err := f.old(ctx, n)
	if err != nil {
		return nil, false, err
	}
	if !in.isDir() {
		return nil, false, in.corrupt(&f.m.sb, "i_mode", "%#o of a directory", in.mode)
	}
	for e, err := range f.m.dirents(ctx, in) {
		if err != nil {
			return nil, false, err
		}
		hit = hit || lost[e.nid] != nil
		if e.kind == vfs.TypeDirectory {
			below = append(below, f.known(e.nid, n))
		}
	}
	return below, hit, nil
}
