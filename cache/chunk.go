// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"math/bits"
	"sync/atomic"
)

// A chunk is what is known of 64 neighbouring blocks. It is also the unit of
// eviction from a blob in use. Reads look at it without a lock; changes are
// made under store.mu.
type chunk struct {
	// usable has a bit for each block that may be read from disk.
	usable atomic.Uint64

	// recorded has a bit for each block that an earlier process recorded and
	// that this one has not yet checked against its tag.
	recorded atomic.Uint64

	// gen counts how often blocks were taken away. A reader that finds it
	// unchanged after its pread knows that no hole was punched meanwhile:
	// bits are cleared first, then gen grows, then the hole is punched.
	gen atomic.Uint32

	touched atomic.Bool // read since the eviction hand last passed
	loaded  atomic.Bool // recorded was read from the record
}

// run returns how many blocks from bit on, to the end of the chunk at most,
// are set in word.
func run(word uint64, bit uint) block {
	return block(bits.TrailingZeros64(^(word >> bit)))
}

// mask returns a word with n bits set from bit on.
func mask(bit uint, n block) uint64 {
	return (^uint64(0) >> (chunkBlocks - uint(n))) << bit
}

// segmentChunks is the number of chunks allocated at once: 3 KiB of memory for
// 128 MiB of blob with blocks of 16 KiB.
const segmentChunks = 128

type segment [segmentChunks]chunk

// chunks holds the chunks of one blob. Memory follows what is used, not the
// size that a manifest claims.
type chunks []atomic.Pointer[segment]

func newChunks(blocks block) chunks {
	n := (blocks + chunkBlocks*segmentChunks - 1) / (chunkBlocks * segmentChunks)
	return make(chunks, n)
}

// peek returns chunk i, or nil when nothing is known of it.
func (cs chunks) peek(i int) *chunk {
	seg := cs[i/segmentChunks].Load()
	if seg == nil {
		return nil
	}
	return &seg[i%segmentChunks]
}

// at returns chunk i.
func (cs chunks) at(i int) *chunk {
	p := &cs[i/segmentChunks]
	if p.Load() == nil {
		p.CompareAndSwap(nil, new(segment))
	}
	return &p.Load()[i%segmentChunks]
}
