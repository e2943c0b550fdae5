// SPDX-License-Identifier: Apache-2.0

package cache

import "testing"

// ErrNoRoom is why a Prefetch may fail in a cache that is too small.
var ErrNoRoom = errNoRoom

// Quiesce waits until no fetch is in flight and all blocks are written.
func (c *Cache) Quiesce() {
	for {
		f := c.anyFetch()
		if f == nil {
			return
		}
		<-f.done
	}
}

func (c *Cache) anyFetch() *fetch {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.order {
		if f := s.anyFetch(); f != nil {
			return f
		}
	}
	return nil
}

func (s *store) anyFetch() *fetch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.inflight) == 0 {
		return nil
	}
	return s.inflight[0]
}

// Lent returns the number of buffers that were not given back.
func (c *Cache) Lent() int64 { return c.pool.lent.Load() }

// Waiting returns how many readers wait for fetches of b.
func (b *Blob) Waiting() int {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	n := 0
	for _, f := range b.s.inflight {
		f.mu.Lock()
		n += len(f.waiters)
		f.mu.Unlock()
	}
	return n
}

// StallWriter keeps the disk writer from writing until resume is called.
func (c *Cache) StallWriter(t testing.TB) (resume func()) {
	t.Helper()
	s := newStore(c, key{1}, newGeometry(1, &c.opts))
	s.refs.Store(2)
	c.mu.Lock()
	c.stores[s.key] = s
	c.mu.Unlock()
	b := newBlob(s, nil, nil)
	f := &fetch{s: s, b: b, n: 1, end: 1, done: make(chan struct{}), buf: c.pool.get(1)}
	f.ticket = c.budget.ask(1, false)
	f.refs.Store(1)
	f.landed.Store(1)
	s.mu.Lock() // the writer will wait for it
	c.queued.Add(1)
	c.queue <- f
	return func() {
		s.mu.Unlock()
		<-f.done
		b.end()
	}
}
