// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"sync"
	"sync/atomic"
)

// recent holds the blocks that reads took a part of last, decompressed. What is
// next to it is often wanted next: files of a few KiB share a block of 16 KiB
// and more, and the kernel reads a longer one in several pieces. It is one for
// all readers of the process, to be small: 8 MiB with the largest blocks.
var recent [128]recentBlock

// A recentBlock is a place that blocks of several readers contend for.
type recentBlock struct {
	mu     sync.Mutex // guards all below
	reader uint64     // whose block it is
	block  int64
	buf    *buffer // nil if there is none yet
}

// readers counts what readers are known by in recent.
var readers atomic.Uint64

func recentPlace(reader uint64, block int64) *recentBlock {
	return &recent[(reader*31+uint64(block))%uint64(len(recent))]
}

// copyFrom copies what follows the first skip bytes of block i to p, and returns
// the number of bytes, 0 if the block is not here.
func (b *recentBlock) copyFrom(reader uint64, i int64, p []byte, skip int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf == nil || b.reader != reader || b.block != i {
		return 0
	}
	return copy(p, b.buf.b[skip:])
}

// keep puts block i in the place of another. It owns buf.
func (b *recentBlock) keep(reader uint64, i int64, buf *buffer) {
	b.mu.Lock()
	b.reader, b.block, b.buf, buf = reader, i, buf, b.buf
	b.mu.Unlock()
	if buf != nil {
		buf.give()
	}
}
