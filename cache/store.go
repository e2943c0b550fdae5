// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A store is what all Blobs open under one key share: the blocks on disk and
// the fetches in flight.
type store struct {
	c      *Cache
	key    key
	geo    geometry
	chunks chunks

	memo sync.Map // of the readers; see Blob.Memo

	opening   sync.Once
	recovered bool // the files were there before; set by opening

	// files is nil until the first block is to be written.
	files atomic.Pointer[files]

	refs  atomic.Int64 // Blobs and fetches; see Cache.unref
	used  atomic.Int64 // disk space, bytes
	spare atomic.Bool  // the bytes are at hand elsewhere; see Blob.Spare

	mu       sync.Mutex // guards inflight, and changes of chunks
	inflight []*fetch   // sorted, without overlap
}

func newStore(c *Cache, k key, geo geometry) *store {
	s := &store{c: c, key: k, geo: geo}
	s.chunks = newChunks(s.geo.count())
	return s
}

func (s *store) header() header {
	return header{blockSize: uint32(s.geo.blockSize()), size: s.geo.size, key: s.key}
}

// open takes over the files that an earlier use of the blob left. Files that
// are not what they should be are not an error: they are deleted.
func (s *store) open() {
	f, err := openFiles(s.c.opts.Dir, s.key, s.header())
	if err == nil {
		s.recovered = true
		s.files.Store(f)
		s.measure(f)
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.c.disk.failed(&s.c.disk.resets, err)
	}
	if err := removeFiles(s.c.opts.Dir, s.key); err != nil {
		s.c.disk.failed(&s.c.disk.writeErrors, err)
	}
	s.setUsed(0)
}

// close closes the files, for good. It may be called more than once.
func (s *store) close() {
	f := s.files.Load()
	if f == nil {
		return
	}
	at := s.lastUsed()
	_ = os.Chtimes(f.tags.Name(), at, at) // a hint for the next process only
	if err := f.close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		s.c.disk.failed(&s.c.disk.writeErrors, err)
	}
}

// lastUsed returns what the next eviction is to think of a blob closed now.
func (s *store) lastUsed() time.Time {
	if s.spare.Load() {
		return time.Unix(0, 0)
	}
	return time.Now()
}

// measure updates the disk space in use.
func (s *store) measure(f *files) {
	if n, err := f.used(); err == nil {
		s.setUsed(n)
	}
}

func (s *store) setUsed(n int64) { s.c.disk.used.Add(n - s.used.Swap(n)) }

// readHit fills p with the bytes at off up to the first that is not on disk,
// and returns their number. It allocates nothing and takes no lock.
func (s *store) readHit(p []byte, off int64) int {
	n := 0
	for n < len(p) {
		k := s.readRun(p[n:], off+int64(n))
		if k == 0 {
			break
		}
		n += k
	}
	return n
}

// readRun is readHit within one chunk.
func (s *store) readRun(p []byte, off int64) int {
	b := s.geo.blockAt(off)
	i, bit := b.place()
	c := s.chunks.peek(i)
	if c == nil {
		return 0
	}
	gen := c.gen.Load() // before usable: see chunk.gen
	blocks := run(c.usable.Load(), bit)
	if blocks == 0 {
		return 0
	}
	p = p[:min(int64(len(p)), s.geo.start(b+blocks)-off)]
	if n, err := s.files.Load().data.ReadAt(p, off); n < len(p) {
		s.unreadable(b, b+blocks, err)
		return 0
	}
	if c.gen.Load() != gen {
		return 0
	}
	if !c.touched.Load() {
		c.touched.Store(true)
	}
	return len(p)
}

// unreadable forgets blocks whose read failed. A file shortened behind our
// back reads as io.EOF.
func (s *store) unreadable(lo, hi block, err error) {
	if errors.Is(err, fs.ErrClosed) {
		return
	}
	s.c.disk.failed(&s.c.disk.readErrors, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(lo, hi)
}

// forget clears what is known of blocks [lo, hi). s.mu is held.
func (s *store) forget(lo, hi block) {
	eachChunk(lo, hi, func(i int, m uint64) {
		if c := s.chunks.peek(i); c != nil {
			c.usable.And(^m)
			c.recorded.And(^m)
			c.gen.Add(1)
		}
	})
}

// eachChunk calls f for each chunk of blocks [lo, hi), with the mask of the
// blocks in it.
func eachChunk(lo, hi block, f func(i int, m uint64)) {
	for lo < hi {
		i, bit := lo.place()
		n := min(hi-lo, chunkBlocks-block(bit))
		f(i, mask(bit, n))
		lo += n
	}
}

// load reads what the record says of the chunks of blocks [lo, hi).
func (s *store) load(lo, hi block) {
	if s.recovered {
		eachChunk(lo, hi, func(i int, _ uint64) { s.loadChunk(i) })
	}
}

func (s *store) loadChunk(i int) {
	c := s.chunks.at(i)
	if c.loaded.Load() {
		return
	}
	first := block(i) * chunkBlocks
	buf := make([]byte, tagSize*min(chunkBlocks, s.geo.count()-first))
	// What cannot be read stays zero, which is: not on disk.
	if _, err := s.files.Load().tags.ReadAt(buf, tagOffset(first)); err != nil && !errors.Is(err, io.EOF) {
		s.c.disk.failed(&s.c.disk.readErrors, err)
	}
	var word uint64
	for j := range len(buf) / tagSize {
		if binary.LittleEndian.Uint64(buf[tagSize*j:]) != 0 {
			word |= 1 << j
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.loaded.Load() {
		c.recorded.Store(word)
		c.loaded.Store(true)
	}
}

// recall checks the blocks of bytes [off, end) that an earlier process
// recorded, and reports whether there were any. They are then usable, or
// missing.
func (s *store) recall(off, end int64) bool {
	if !s.recovered {
		return false
	}
	lo, hi := s.geo.span(off, end)
	s.load(lo, hi)
	found := false
	for b := lo; b < hi; b++ {
		i, bit := b.place()
		if c := s.chunks.at(i); c.recorded.Load()>>bit&1 != 0 {
			found = true
			s.checkBlock(c, b)
		}
	}
	return found
}

// checkBlock compares block b with its tag.
func (s *store) checkBlock(c *chunk, b block) {
	gen := c.gen.Load()
	ok := s.matchesTag(b)
	_, bit := b.place()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.gen.Load() != gen || c.recorded.Load()>>bit&1 == 0 {
		return // dropped, evicted or checked meanwhile
	}
	c.recorded.And(^mask(bit, 1))
	if ok {
		c.usable.Or(mask(bit, 1))
	} else {
		s.c.disk.corrupt.Add(1)
	}
}

func (s *store) matchesTag(b block) bool {
	f, off := s.files.Load(), s.geo.start(b)
	buf := s.c.pool.get(s.geo.start(b+1) - off)
	defer s.c.pool.put(buf)
	if n, _ := f.data.ReadAt(buf.p, off); n < len(buf.p) {
		return false
	}
	want := make([]byte, tagSize)
	if n, _ := f.tags.ReadAt(want, tagOffset(b)); n < tagSize {
		return false
	}
	return tag(b, buf.p) == binary.LittleEndian.Uint64(want)
}

// onDisk reports whether block b is, or may be, on disk.
func (s *store) onDisk(b block) bool {
	i, bit := b.place()
	c := s.chunks.peek(i)
	return c != nil && (c.usable.Load()|c.recorded.Load())>>bit&1 != 0
}
