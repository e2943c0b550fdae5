// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"fmt"
	"math/bits"
	"sort"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A block is the index of a block in a blob. Offsets (int64, bytes) and block
// indexes meet only in the methods of geometry.
type block int64

// geometry is the arithmetic between the bytes and the blocks of one blob.
//
// Blocks have one size, and only the last may be short. Where the bytes are
// made in spans, which takes the same for one as for all of them, blocks begin
// anew with each span and the last of each may be short: so no block has to be
// made of two.
type geometry struct {
	size      int64 // of the blob
	shift     uint  // log2 of the block size
	maxExtent block // blocks in what one request asks for at most
	spans     []edge
	parts     bool // of a span cost less than all of it
}

// An edge is where a span begins, and its first block. The last edge of a list
// is the end of the blob.
type edge struct {
	off   int64
	first block
}

func newGeometry(size int64, o *Options) geometry {
	shift := uint(bits.TrailingZeros(uint(o.BlockSize)))
	return geometry{
		size:      size,
		shift:     shift,
		maxExtent: block(o.MaxExtent >> shift),
	}
}

// leastSpan is how many blocks a span has at least: those that are smaller
// count as one with the next.
const leastSpan = 4

// addSpans takes over the spans that s makes.
func (g *geometry) addSpans(s fetcher.Spanner) error {
	spans := []edge{{}}
	for off := int64(0); off < g.size; {
		start, end := s.Span(off)
		if start != off || end <= off || end > g.size {
			return fmt.Errorf("byte %d of %d is in a span from %d to %d", off, g.size, start, end)
		}
		last := spans[len(spans)-1]
		if off = end; end-last.off >= leastSpan<<g.shift || end == g.size {
			spans = append(spans, edge{end, last.first + block((end-last.off+g.blockSize()-1)>>g.shift)})
		}
	}
	if g.size > 0 {
		g.spans, g.parts = spans, s.Parts()
	}
	return nil
}

// spanned reports whether the blob's bytes are made in spans.
func (g *geometry) spanned() bool { return g.spans != nil }

func (g *geometry) blockSize() int64 { return 1 << g.shift }

// blockAt returns the block that holds byte off.
func (g *geometry) blockAt(off int64) block {
	if g.spans == nil {
		return block(off >> g.shift)
	}
	if off >= g.size {
		return g.count()
	}
	e := g.spans[sort.Search(len(g.spans), func(i int) bool { return g.spans[i].off > off })-1]
	return e.first + block((off-e.off)>>g.shift)
}

// start returns the offset of the first byte of b, or the size of the blob for
// the block after the last.
func (g *geometry) start(b block) int64 {
	if g.spans == nil {
		return min(int64(b)<<g.shift, g.size)
	}
	e := g.spans[g.spanOf(b)]
	return min(e.off+int64(b-e.first)<<g.shift, g.size)
}

// spanOf returns the number of the span that b is in, or that of the last edge
// for the block after the last.
func (g *geometry) spanOf(b block) int {
	return sort.Search(len(g.spans), func(i int) bool { return g.spans[i].first > b }) - 1
}

// count returns the number of blocks in the blob.
func (g *geometry) count() block {
	if g.spans == nil {
		return g.blockAt(g.size + g.blockSize() - 1)
	}
	return g.spans[len(g.spans)-1].first
}

// span returns the blocks [first, end) that bytes [off, end) touch.
func (g *geometry) span(off, end int64) (first, last block) {
	switch {
	case g.spans == nil:
		return g.blockAt(off), g.blockAt(end + g.blockSize() - 1)
	case end <= off:
		return g.blockAt(off), g.blockAt(off)
	case end >= g.size:
		return g.blockAt(off), g.count()
	}
	return g.blockAt(off), g.blockAt(end-1) + 1
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
	extent := max(g.blocks(form.extent), 1)
	unit := max(g.blocks(form.unit), extent)
	lo = b &^ (unit - 1)
	hi = max(lo+unit, (end+extent-1)&^(extent-1))
	hi = min(hi, lo+g.maxExtent, g.count())
	if g.spanned() {
		return g.wholeSpans(b, end, lo, hi)
	}
	return lo, hi
}

// blocks returns how many blocks n bytes are, n being that of a cut.
func (g *geometry) blocks(n int64) block { return block(n >> g.shift) }

// chunkBlocks is the number of blocks in a chunk: one machine word of them.
const chunkBlocks = 64

// place returns the chunk that holds b, and b's bit in it.
func (b block) place() (chunk int, bit uint) {
	return int(b / chunkBlocks), uint(b % chunkBlocks)
}
