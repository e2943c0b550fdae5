// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"slices"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// cacheBytes bounds the metadata kept in memory between operations (48 MiB).
// All bitmaps of a 64 GiB volume are 4 MiB, the inodes and names of 100,000
// files about 32 MiB.
const cacheBytes = 48 << 20

// A block is a metadata block in memory.
type block struct {
	no    uint64
	data  []byte
	dirty bool
	used  uint64 // when it was last asked for

	checked role // what it was found to be a sound instance of
}

// A cache holds metadata blocks. A block stays valid until the next trim.
type cache struct {
	dev    backend.Writer
	size   int // of a block, in bytes
	limit  int // blocks
	blocks map[uint64]*block
	clock  uint64 // counts requests
}

func newCache(dev backend.Writer, blockSize int) *cache {
	return &cache{dev: dev, size: blockSize, limit: cacheBytes / blockSize, blocks: make(map[uint64]*block)}
}

// get returns block no, from the device if need be.
func (c *cache) get(ctx context.Context, no uint64) (*block, error) {
	c.clock++
	if b := c.blocks[no]; b != nil {
		b.used = c.clock
		return b, nil
	}
	b := &block{no: no, data: make([]byte, c.size), used: c.clock}
	if err := readFull(ctx, c.dev, b.data, int64(no)*int64(c.size)); err != nil {
		return nil, err
	}
	c.blocks[no] = b
	return b, nil
}

// zero returns block no filled with zeroes, whatever the device has there.
func (c *cache) zero(no uint64) *block {
	c.clock++
	b := &block{no: no, data: make([]byte, c.size), dirty: true, used: c.clock}
	c.blocks[no] = b
	return b
}

// forget drops the blocks of r, which are no longer metadata.
func (c *cache) forget(r run) {
	if r.n > uint64(len(c.blocks)) {
		for no := range c.blocks {
			if r.contains(no) {
				delete(c.blocks, no)
			}
		}
		return
	}
	for no := r.start; no < r.end(); no++ {
		delete(c.blocks, no)
	}
}

func (c *cache) full() bool { return len(c.blocks) > c.limit }

// trim writes back and drops the half of the blocks that was not asked for
// the longest.
func (c *cache) trim(ctx context.Context) error {
	all := make([]*block, 0, len(c.blocks))
	for _, b := range c.blocks {
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b *block) int { return int(int64(a.used - b.used)) })
	old := all[:len(all)/2]
	if err := c.write(ctx, old); err != nil {
		return err
	}
	for _, b := range old {
		delete(c.blocks, b.no)
	}
	return nil
}

// flush writes back everything.
func (c *cache) flush(ctx context.Context) error {
	var all []*block
	for _, b := range c.blocks {
		all = append(all, b)
	}
	return c.write(ctx, all)
}

// write writes the dirty ones of blocks in the order of the device,
// neighbours together.
func (c *cache) write(ctx context.Context, blocks []*block) error {
	blocks = slices.DeleteFunc(slices.Clone(blocks), func(b *block) bool { return !b.dirty })
	slices.SortFunc(blocks, func(a, b *block) int { return int(int64(a.no - b.no)) })
	out := vfs.NewStream(c.dev.WriteAt)
	for _, b := range blocks {
		if err := out.Write(ctx, b.data, int64(b.no)*int64(c.size)); err != nil {
			return err
		}
	}
	if err := out.Flush(ctx); err != nil {
		return err
	}
	for _, b := range blocks {
		b.dirty = false
	}
	return nil
}
