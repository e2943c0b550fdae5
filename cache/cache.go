// SPDX-License-Identifier: Apache-2.0

// Package cache keeps blocks of remote blobs on local disk, keyed by the
// digest of the blob. A cached blob is a [fetcher.Blob] over another one, its
// source:
//
//	c, err := cache.Open(cache.Options{Dir: "/var/lib/overlaybd/cache"})
//	blobs := c.Opener(registry) // opens blobs of registry through c
//
// The one thing to know: a block on disk is trusted only while the process
// that wrote it lives. After a restart each block is compared, at its first
// use, with a 64-bit checksum in the blob's record, so that nothing is ever
// flushed, and a crash or power cut at any instant costs blocks, never bytes.
//
// A read of blocks on disk takes no lock and allocates nothing. Other reads
// share one request to the source per missing range, however many wait, and
// return as soon as their own bytes have arrived; the blocks are written
// behind them. Where the disk is slow, full or broken, reads go on without
// it. Errors of the source are passed on and not retried.
//
// Bytes are believed as the source gives them, for every later reader of that
// digest. A source that is not trusted must be wrapped in one that verifies.
package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Cache is a directory of cached blobs, in use by one process.
type Cache struct {
	opts   Options
	lock   *os.File
	pool   pool
	link   link
	budget budget

	queue    chan *fetch   // to the writer goroutine
	queued   atomic.Int64  // bytes in queue that readers caused
	written  chan struct{} // closed when the writer has ended
	degraded atomic.Bool   // the last write failed
	disk     diskCounters
	hand     hand // used by the writer alone

	mu       sync.Mutex // guards what follows; taken before store.mu
	closed   bool
	blobs    map[*Blob]struct{}
	stores   map[key]*store
	order    []*store // stores, for the clock
	idle     map[key]idleBlob
	removing map[key]chan struct{} // closed when the files are gone
	retired  ReadStats             // of blobs closed
}

// Open opens the cache in opts.Dir with all that earlier processes left there.
// The directory belongs to the Cache until it is closed: another process that
// opens it gets an error.
func Open(opts Options) (*Cache, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c := &Cache{
		opts:     opts,
		lock:     lock,
		budget:   budget{limit: opts.MaxInflightBytes},
		queue:    make(chan *fetch, maxQueued),
		written:  make(chan struct{}),
		blobs:    make(map[*Blob]struct{}),
		stores:   make(map[key]*store),
		removing: make(map[key]chan struct{}),
	}
	c.idle, err = scanDir(opts.Dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open cache: %w", err), lock.Close())
	}
	for _, b := range c.idle {
		c.disk.used.Add(b.used)
	}
	go c.writeLoop()
	return c, nil
}

// Blob returns src read through c. Every Blob opened under one key shares
// blocks and fetches; sources of one key must have the same size. The Blob
// owns src, which stays the caller's when Blob fails.
func (c *Cache) Blob(d digest.Digest, src fetcher.Blob) (*Blob, error) {
	return c.blob(d, src, nil)
}

// blob is Blob for a src that may be made of something else.
func (c *Cache) blob(d digest.Digest, src fetcher.Blob, m *made) (*Blob, error) {
	s, err := c.store(d, src)
	if err != nil {
		return nil, fmt.Errorf("cache blob %s: %w", d, err)
	}
	s.opening.Do(s.open)
	b := newBlob(s, src, m)
	if !c.admit(b) {
		b.end()
		c.unref(s)
		return nil, fmt.Errorf("cache blob %s: %w", d, fs.ErrClosed)
	}
	return b, nil
}

// admit puts b on the books, unless c is closed.
func (c *Cache) admit(b *Blob) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.blobs[b] = struct{}{}
	}
	return !c.closed
}

// geometry returns the geometry of src.
func (c *Cache) geometry(src fetcher.Blob) (geometry, error) {
	size := src.Size()
	if size < 0 || size > maxBlobSize {
		return geometry{}, fmt.Errorf("size of %d bytes is not from 0 to %d", size, int64(maxBlobSize))
	}
	geo := newGeometry(size, &c.opts)
	var err error
	if s, ok := src.(fetcher.Spanner); ok {
		err = geo.addSpans(s)
	}
	return geo, err
}

// store returns the store of d, whose source is src, referenced and perhaps not
// yet open.
func (c *Cache) store(d digest.Digest, src fetcher.Blob) (*store, error) {
	k, err := parseKey(d)
	if err != nil {
		return nil, err
	}
	geo, err := c.geometry(src)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitRemoval(k)
	if c.closed {
		return nil, fs.ErrClosed
	}
	s := c.stores[k]
	if s == nil {
		s = newStore(c, k, geo)
		s.used.Store(c.idle[k].used)
		delete(c.idle, k)
		c.stores[k] = s
		c.order = append(c.order, s)
	}
	if s.geo.size != geo.size {
		return nil, fmt.Errorf("source has %d bytes, but one open under the same digest has %d", geo.size, s.geo.size)
	}
	s.refs.Add(1)
	s.spare.Store(false)
	return s, nil
}

// awaitRemoval waits until k is not being evicted. c.mu is held, but not while
// waiting.
func (c *Cache) awaitRemoval(k key) {
	for {
		gone, ok := c.removing[k]
		if !ok {
			return
		}
		c.mu.Unlock()
		<-gone
		c.mu.Lock()
	}
}

// forgetBlob takes b, now closed, off the books.
func (c *Cache) forgetBlob(b *Blob) {
	c.mu.Lock()
	delete(c.blobs, b)
	c.retired.add(b.Stats())
	c.mu.Unlock()
	c.unref(b.s)
}

// unref ends one use of s. The last closes its files.
func (c *Cache) unref(s *store) {
	if s.refs.Add(-1) > 0 {
		return
	}
	if c.retire(s) {
		s.close()
	}
}

// retire moves s from the open to the idle blobs, and reports whether nobody
// uses it.
func (c *Cache) retire(s *store) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.refs.Load() > 0 {
		return false // opened again meanwhile
	}
	if c.stores[s.key] != s {
		return true // retired by another, or by Close
	}
	delete(c.stores, s.key)
	c.order = slices.DeleteFunc(c.order, func(o *store) bool { return o == s })
	if s.files.Load() != nil {
		c.idle[s.key] = idleBlob{used: s.used.Load(), lastUsed: s.lastUsed()}
	}
	return true
}

// Stats returns what c did since Open.
func (c *Cache) Stats() Stats {
	var s Stats
	c.disk.fill(&s)
	s.LimitBytes = c.opts.Size
	s.InflightBytes = c.budget.inflight()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Blobs = int64(len(c.blobs))
	s.ReadStats = c.retired
	for b := range c.blobs {
		s.add(b.Stats())
	}
	return s
}

// Close fails all reads in progress, writes out what was fetched, and unlocks
// the directory. Blobs still open must be closed by their owners, before or
// after.
func (c *Cache) Close() error {
	blobs, ok := c.shut()
	if !ok {
		return nil
	}
	for _, b := range blobs {
		b.stop()
	}
	for _, b := range blobs {
		b.fetches.Wait()
	}
	close(c.queue)
	<-c.written
	c.closeStores()
	return c.lock.Close()
}

// shut lets no more blobs in and returns those that are open.
func (c *Cache) shut() (blobs []*Blob, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false
	}
	c.closed = true
	for b := range c.blobs {
		blobs = append(blobs, b)
	}
	return blobs, true
}

// closeStores closes the files of blobs still open.
func (c *Cache) closeStores() {
	c.mu.Lock()
	stores := c.order
	c.order = nil
	clear(c.stores)
	c.mu.Unlock()
	for _, s := range stores {
		s.close()
	}
}
