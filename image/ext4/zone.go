// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"cmp"
	"slices"
	"sort"
)

// A run is a number of neighbouring blocks.
type run struct {
	start, n uint64
}

func (r run) end() uint64             { return r.start + r.n }
func (r run) contains(no uint64) bool { return no-r.start < r.n }

// A zone is a set of blocks: runs that are sorted and apart. The system zone
// has the blocks that belong to no file: superblocks, descriptors, bitmaps and
// inode tables. No file may reach into it.
type zone []run

// layZone collects the system zone. Structures that overlap are refused, so
// that a bitmap never is an inode table as well.
func (f *FS) layZone() error {
	sb := &f.sb
	z := make(zone, 0, 4*sb.groups)
	for g := range f.groups {
		d := &f.groups[g]
		z = append(z, run{d.blockBitmap, 1}, run{d.inodeBitmap, 1}, run{d.inodeTable, sb.tableBlocks()})
		if sb.hasSuper(g) {
			z = append(z, run{sb.groupStart(g), 1 + sb.descBlocks() + sb.reserved})
		}
	}
	slices.SortFunc(z, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	merged := z[:1]
	for _, r := range z[1:] {
		last := &merged[len(merged)-1]
		switch {
		case r.start < last.end():
			return corrupt("group descriptors", sb.off(sb.first+1), "block numbers", "metadata overlaps at block %d", r.start)
		case r.start == last.end():
			last.n += r.n
		default:
			merged = append(merged, r)
		}
	}
	if end := merged[len(merged)-1].end(); end > sb.blocks {
		return superCorrupt("s_blocks_count", "metadata up to block %d in a file system of %d", end, sb.blocks)
	}
	f.system = slices.Clip(merged)
	return nil
}

// within yields the parts of the zone that lie in r.
func (z zone) within(r run) []run {
	i := sort.Search(len(z), func(i int) bool { return z[i].end() > r.start })
	var in []run
	for ; i < len(z) && z[i].start < r.end(); i++ {
		start, end := max(z[i].start, r.start), min(z[i].end(), r.end())
		in = append(in, run{start, end - start})
	}
	return in
}

// overlaps reports whether r shares a block with the zone.
func (z zone) overlaps(r run) bool {
	i := sort.Search(len(z), func(i int) bool { return z[i].end() > r.start })
	return i < len(z) && z[i].start < r.end()
}

// fileRun reports whether r may belong to a file.
func (f *FS) fileRun(r run) bool {
	return r.start > f.sb.first && r.n <= f.sb.blocks && r.start <= f.sb.blocks-r.n && !f.system.overlaps(r)
}
