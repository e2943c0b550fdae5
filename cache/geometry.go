// SPDX-License-Identifier: Apache-2.0

package cache

import "math/bits"

// A block is the index of a block in a blob. Offsets (int64, bytes) and block
// indexes meet only in the methods of geometry.
type block int64

// geometry is the arithmetic between the bytes and the blocks of one blob.
type geometry struct {
	size      int64 // of the blob
	shift     uint  // log2 of the block size
	maxExtent block // blocks in what one request asks for at most
}

func newGeometry(size int64, o *Options) geometry {
	shift := uint(bits.TrailingZeros(uint(o.BlockSize)))
	return geometry{
		size:      size,
		shift:     shift,
		maxExtent: block(o.MaxExtent >> shift),
	}
}

func (g *geometry) blockSize() int64 { return 1 << g.shift }

// blockAt returns the block that holds byte off.
func (g *geometry) blockAt(off int64) block { return block(off >> g.shift) }

// start returns the offset of the first byte of b, or the size of the blob for
// the block after the last: the last block may be short.
func (g *geometry) start(b block) int64 { return min(int64(b)<<g.shift, g.size) }

// count returns the number of blocks in the blob.
func (g *geometry) count() block { return g.blockAt(g.size + g.blockSize() - 1) }

// span returns the blocks [first, end) that bytes [off, end) touch.
func (g *geometry) span(off, end int64) (first, last block) {
	return g.blockAt(off), g.blockAt(end + g.blockSize() - 1)
}

// whole returns the end of the blocks that lie wholly in bytes [start of
// first, end).
func (g *geometry) whole(end int64) block {
	if end >= g.size {
		return g.count()
	}
	return g.blockAt(end)
}

// window returns the blocks around b that one request may ask for when a
// reader wants all up to end: all of the unit that b is in, to the end of the
// last wanted extent, at most maxExtent.
func (g *geometry) window(b, end block, form cut) (lo, hi block) {
	extent := max(g.blockAt(form.extent), 1)
	unit := max(g.blockAt(form.unit), extent)
	lo = b &^ (unit - 1)
	hi = max(lo+unit, (end+extent-1)&^(extent-1))
	return lo, min(hi, lo+g.maxExtent, g.count())
}

// chunkBlocks is the number of blocks in a chunk: one machine word of them.
const chunkBlocks = 64

// place returns the chunk that holds b, and b's bit in it.
func (b block) place() (chunk int, bit uint) {
	return int(b / chunkBlocks), uint(b % chunkBlocks)
}
