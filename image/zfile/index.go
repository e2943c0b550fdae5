// SPDX-License-Identifier: Apache-2.0

package zfile

import "slices"

// An index knows where each block starts. It is resident for as long as the
// image is, so it is kept small: one offset in full per group of blocks, and
// 16 bits per block for its distance from there. At 4 KiB blocks that is 2.5
// bytes a block, 6.6 MB for a 10 GiB image, where plain 64-bit offsets take
// 21 MB and the stored 32-bit lengths, which cannot be searched, 10.5 MB. It
// holds no pointers, and a lookup is two loads and an addition.
type index struct {
	shift  uint     // a group is 1<<shift blocks
	bases  []int64  // start of each group, bytes
	deltas []uint16 // start of each block, bytes from its group's start
	end    int64    // where the next block starts: the end of the last
}

// newIndex returns the index of blocks that follow each other from byte start
// on, each at most maxStored bytes long.
func newIndex(start int64, maxStored int) *index {
	x := &index{end: start}
	for maxStored<<(x.shift+1)-maxStored <= 1<<16-1 {
		x.shift++
	}
	return x
}

// grow makes room for n more blocks.
func (x *index) grow(n int) {
	x.bases = slices.Grow(x.bases, n>>x.shift+1)
	x.deltas = slices.Grow(x.deltas, n)
}

// add appends a block of n bytes.
func (x *index) add(n int) {
	if len(x.deltas)&(1<<x.shift-1) == 0 {
		x.bases = append(x.bases, x.end)
	}
	x.deltas = append(x.deltas, uint16(x.end-x.bases[len(x.bases)-1]))
	x.end += int64(n)
}

// offset returns where block i starts; the block after the last starts where
// the last ends.
func (x *index) offset(i int64) int64 {
	if i == int64(len(x.deltas)) {
		return x.end
	}
	return x.bases[i>>x.shift] + int64(x.deltas[i])
}
