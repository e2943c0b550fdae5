// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Only one goroutine writes to disk and evicts, so that blocks are written,
// recorded and punched out in one order without a lock held across I/O. It
// keeps up with any network: a write goes to the page cache.

// maxQueued bounds the fetches that wait to be written.
const maxQueued = 256

// enqueue hands f's blocks to the disk writer. A full queue loses those that a
// reader caused, whose memory the next reader needs; a prefetch waits.
func (c *Cache) enqueue(f *fetch) {
	if f.ticket.low {
		select {
		case c.queue <- f:
		case <-f.b.life.Done():
			c.lose(f, errAbandoned)
		}
		return
	}
	if c.queued.Add(f.n) > c.opts.MaxInflightBytes/2 {
		c.queued.Add(-f.n)
		c.lose(f, errQueueFull)
		return
	}
	select {
	case c.queue <- f:
	default:
		c.queued.Add(-f.n)
		c.lose(f, errQueueFull)
	}
}

// lose gives up on keeping f's blocks.
func (c *Cache) lose(f *fetch, why error) {
	if f.err != nil {
		why = f.err
	}
	if !errors.Is(why, errDropped) {
		c.disk.dropped.Add(f.landed.Load())
	}
	f.leave(why)
}

// writeLoop writes until the queue is closed and empty.
func (c *Cache) writeLoop() {
	defer close(c.written)
	_ = c.makeRoom(0) // a full disk is met again at the first write
	for f := range c.queue {
		err := c.write(f)
		if !f.ticket.low {
			c.queued.Add(-f.n)
		}
		c.degraded.Store(err != nil && !errors.Is(err, errDropped))
		if err != nil {
			c.lose(f, err)
			continue
		}
		f.leave(f.err)
	}
}

// write puts the blocks of f that landed whole on disk.
func (c *Cache) write(f *fetch) error {
	end := f.s.geo.whole(f.off + f.landed.Load())
	for lo := f.first; lo < end; {
		hi, dropped := f.s.unwritten(f, lo, end)
		if dropped {
			return errDropped
		}
		if hi == lo {
			lo++
			continue
		}
		if err := c.writeBlocks(f, lo, hi); err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

// unwritten returns the end of the blocks from lo on that are not on disk, and
// whether f was dropped.
func (s *store) unwritten(f *fetch, lo, end block) (hi block, dropped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for hi = lo; hi < end && !s.onDisk(hi); hi++ {
	}
	return hi, f.dropped
}

// writeBlocks writes blocks [lo, hi) of f, records them, and shows them to
// readers, in this order.
func (c *Cache) writeBlocks(f *fetch, lo, hi block) error {
	n := f.s.geo.start(hi) - f.s.geo.start(lo)
	if err := c.makeRoom(n); err != nil {
		return err
	}
	err := f.s.put(f, lo, hi)
	if errors.Is(err, unix.ENOSPC) && c.shrink(n) {
		err = f.s.put(f, lo, hi)
	}
	if err != nil {
		err = fmt.Errorf("write bytes [%d, %d) of blob %s to cache: %w", f.s.geo.start(lo), f.s.geo.start(hi), f.s.key, err)
		c.disk.failed(&c.disk.writeErrors, err)
		return err
	}
	c.disk.written.Add(n)
	return f.s.publish(f, lo, hi)
}

// put writes the data, then the tags, of blocks [lo, hi) of f.
func (s *store) put(f *fetch, lo, hi block) error {
	files, err := s.writable()
	if err != nil {
		return err
	}
	defer s.measure(files)
	off := s.geo.start(lo)
	data := f.buf.p[off-f.off : s.geo.start(hi)-f.off]
	if _, err := files.data.WriteAt(data, off); err != nil {
		return err
	}
	tags := make([]byte, 0, tagSize*(hi-lo))
	for b := lo; b < hi; b++ {
		p := f.buf.p[s.geo.start(b)-f.off : s.geo.start(b+1)-f.off]
		tags = binary.LittleEndian.AppendUint64(tags, tag(b, p))
	}
	_, err = files.tags.WriteAt(tags, tagOffset(lo))
	return err
}

// writable returns the store's files, created if need be.
func (s *store) writable() (*files, error) {
	if f := s.files.Load(); f != nil {
		return f, nil
	}
	f, err := createFiles(s.c.opts.Dir, s.key, s.header())
	if err != nil {
		return nil, err
	}
	s.files.Store(f)
	return f, nil
}

// publish shows blocks that were written to readers, unless they were dropped
// meanwhile: then the tags just written must go.
func (s *store) publish(f *fetch, lo, hi block) error {
	s.mu.Lock()
	if f.dropped {
		s.mu.Unlock()
		return errors.Join(errDropped, s.files.Load().clearTags(lo, hi))
	}
	defer s.mu.Unlock()
	eachChunk(lo, hi, func(i int, m uint64) {
		c := s.chunks.at(i)
		c.usable.Or(m)
		c.touched.Store(true)
	})
	return nil
}
