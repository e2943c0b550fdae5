// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"fmt"

	"github.com/overlaybd-go/overlaybd/backend"
)

// An image is what is on the device.
type image struct {
	dev   backend.Volume
	sb    superblock
	cache cache
	long  []prefix // of the names of attributes
}

// openImage opens what is on dev, and keeps so many blocks of metadata.
func openImage(ctx context.Context, dev backend.Volume, keep int) (*image, error) {
	sb, err := readSuper(ctx, dev)
	if err != nil {
		return nil, err
	}
	m := &image{dev: dev, sb: sb, cache: newCache(keep)}
	if err := m.readPrefixes(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// block returns block no, which must not be changed.
func (m *image) block(ctx context.Context, no int64) ([]byte, error) {
	if p := m.cache.get(no); p != nil {
		return p, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := make([]byte, blockSize)
	if err := readFull(ctx, m.dev, p, no<<blockBits); err != nil {
		return nil, err
	}
	m.cache.put(no, p)
	return p, nil
}

// read returns n bytes of metadata at off. It is for what is known to be
// small.
func (m *image) read(ctx context.Context, off, n int64) ([]byte, error) {
	if end := m.sb.end(); off < 0 || n < 0 || off > end || n > end-off {
		return nil, fmt.Errorf("%w: %d bytes at %d are outside of the file system", ErrCorrupt, n, off)
	}
	var p []byte
	for first := true; ; first = false {
		b, err := m.block(ctx, off>>blockBits)
		if err != nil {
			return nil, err
		}
		part := b[off&(blockSize-1):]
		part = part[:min(int64(len(part)), n)]
		if n -= int64(len(part)); first && n == 0 {
			return part, nil
		}
		p, off = append(p, part...), off+int64(len(part))
		if n == 0 {
			return p, nil
		}
	}
}

// A cache holds the blocks that were read last, or nearly so: what comes in
// first leaves first.
type cache struct {
	blocks map[int64][]byte
	queue  []int64 // a ring
	next   int
}

func newCache(keep int) cache {
	return cache{blocks: make(map[int64][]byte), queue: make([]int64, 0, keep)}
}

func (c *cache) get(no int64) []byte { return c.blocks[no] }

func (c *cache) put(no int64, p []byte) {
	if len(c.queue) < cap(c.queue) {
		c.queue = append(c.queue, no)
	} else {
		delete(c.blocks, c.queue[c.next])
		c.queue[c.next] = no
		c.next = (c.next + 1) % len(c.queue)
	}
	c.blocks[no] = p
}

// clear forgets everything.
func (c *cache) clear() {
	clear(c.blocks)
	c.queue, c.next = c.queue[:0], 0
}
