// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"errors"
	"fmt"
	"math/bits"
	"time"

	"golang.org/x/sys/unix"
)

// What goes first: blobs that nobody has open, whole, the one closed longest
// ago first; then, of the blobs in use, chunks that were not read since the
// hand of the clock last passed. Everything here runs on the writer goroutine.

var errNoRoom = errors.New("cache is full and nothing in it can go")

// An idleBlob is on disk and not open.
type idleBlob struct {
	used     int64 // disk space, bytes
	lastUsed time.Time
}

// makeRoom evicts until n bytes may be written.
func (c *Cache) makeRoom(n int64) error {
	over := c.disk.used.Load() + n - c.opts.Size
	if over > 0 {
		// A little more, so that not every write evicts.
		over += min(c.opts.Size/64, 64<<20)
	}
	// The file system counts freed space as free only after its next commit:
	// asking for all that is missing, each time, would empty the cache.
	over = max(over, min(c.lacking(n), 2*n))
	if over <= 0 || c.shrink(over) || c.disk.used.Load()+n <= c.opts.Size && c.lacking(n) <= 0 {
		return nil
	}
	return fmt.Errorf("write %d bytes to cache: %w", n, errNoRoom)
}

// lacking returns how much more free space the file system must have before n
// bytes may be written.
func (c *Cache) lacking(n int64) int64 {
	var st unix.Statfs_t
	if c.opts.MinFree < 0 || unix.Statfs(c.opts.Dir, &st) != nil {
		return 0
	}
	return c.opts.MinFree + n - int64(st.Bavail)*st.Bsize
}

// shrink evicts at least n bytes, and reports whether it could.
func (c *Cache) shrink(n int64) bool {
	for n > 0 {
		freed := c.evictIdle()
		if freed == 0 {
			freed = c.evictChunk()
		}
		if freed == 0 {
			return false
		}
		c.disk.evicted.Add(freed)
		n -= freed
	}
	return true
}

// evictIdle deletes the blob closed longest ago and returns the space freed.
func (c *Cache) evictIdle() int64 {
	k, blob, ok := c.takeOldest()
	if !ok {
		return 0
	}
	if err := removeFiles(c.opts.Dir, k); err != nil {
		c.disk.failed(&c.disk.writeErrors, err)
	}
	c.disk.used.Add(-blob.used)
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.removing[k])
	delete(c.removing, k)
	return max(blob.used, 1)
}

// takeOldest moves the blob closed longest ago from idle to removing.
func (c *Cache) takeOldest() (oldest key, blob idleBlob, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, b := range c.idle {
		if !ok || b.lastUsed.Before(blob.lastUsed) {
			oldest, blob, ok = k, b, true
		}
	}
	if ok {
		delete(c.idle, oldest)
		c.removing[oldest] = make(chan struct{})
	}
	return oldest, blob, ok
}

// A hand is the place in the open blobs where the clock stopped.
type hand struct {
	store int // index in Cache.open
	chunk int
}

// evictChunk frees the next chunk under the hand that was not read since the
// hand last passed, and returns the space freed.
func (c *Cache) evictChunk() int64 {
	// Twice round spares nothing: the first pass clears every mark.
	for passed := 0; ; {
		s := c.underHand()
		if s == nil {
			return 0
		}
		if freed := s.sweep(&c.hand.chunk); freed > 0 {
			c.unref(s)
			return freed
		}
		c.unref(s)
		c.hand = hand{store: c.hand.store + 1}
		if passed++; passed > 2*c.openCount() {
			return 0
		}
	}
}

// underHand returns the open store that the hand points at, referenced.
func (c *Cache) underHand() *store {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.order) == 0 {
		return nil
	}
	c.hand.store %= len(c.order)
	s := c.order[c.hand.store]
	s.refs.Add(1)
	return s
}

func (c *Cache) openCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.order)
}

// sweep moves *i forward to the next chunk that can go, frees it, and returns
// the space freed, or 0 at the end of the blob.
func (s *store) sweep(i *int) int64 {
	f := s.files.Load()
	if f == nil {
		return 0
	}
	for ; *i < s.chunkCount(f); *i++ {
		if s.recovered {
			s.loadChunk(*i)
		}
		c := s.chunks.peek(*i)
		if c == nil || c.usable.Load()|c.recorded.Load() == 0 || c.touched.Swap(false) {
			continue
		}
		return s.evict(f, *i, c)
	}
	return 0
}

// chunkCount returns the number of chunks that the data file may hold.
func (s *store) chunkCount(f *files) int {
	fi, err := f.data.Stat()
	if err != nil {
		return 0
	}
	_, end := s.geo.span(0, min(fi.Size(), s.geo.size))
	return int((end + chunkBlocks - 1) / chunkBlocks)
}

// evict frees chunk i. The order matters: see chunk.gen.
func (s *store) evict(f *files, i int, c *chunk) int64 {
	first := block(i) * chunkBlocks
	last := min(first+chunkBlocks, s.geo.count())
	s.mu.Lock()
	gone := c.usable.Load() | c.recorded.Load()
	s.forget(first, last)
	s.mu.Unlock()

	before := s.used.Load()
	s.unrecord(f, i, mask(0, last-first))
	off, end := s.geo.start(first), s.geo.start(last)
	if last == s.geo.count() {
		end += s.geo.blockSize() // to free all of the last page
	}
	if err := f.punch(off, end-off); err != nil {
		s.c.disk.failed(&s.c.disk.writeErrors, err)
		return 0
	}
	s.measure(f)
	if freed := before - s.used.Load(); freed > 0 {
		return freed
	}
	return int64(bits.OnesCount64(gone)) << s.geo.shift
}
