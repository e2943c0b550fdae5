// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"container/list"
	"math/bits"
	"sync"
	"sync/atomic"
)

// A budget bounds the memory that fetches hold. It is asked for all a fetch
// needs at once and gives in order of asking, so that fetches cannot wait for
// each other's halves. Prefetches are served after demand and hold a quarter
// at most.
type budget struct {
	limit int64 // bytes

	mu       sync.Mutex // guards all below
	held     int64
	heldLow  int64 // of held, by prefetches
	demand   list.List
	prefetch list.List
}

// A ticket is one fetch's place in a budget.
type ticket struct {
	n     int64
	low   bool
	ready chan struct{} // closed when the bytes are granted
	elem  *list.Element // place in the queue, nil once granted
}

// ask queues for n bytes, n <= limit/4.
func (b *budget) ask(n int64, low bool) *ticket {
	t := &ticket{n: n, low: low, ready: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	t.elem = b.queue(t).PushBack(t)
	b.grant()
	return t
}

// promote moves a prefetch that a reader now waits for to the demand queue.
func (b *budget) promote(t *ticket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !t.low || t.elem == nil {
		return
	}
	b.prefetch.Remove(t.elem)
	t.low = false
	t.elem = b.demand.PushBack(t)
	b.grant()
}

// giveBack returns what t was granted, or its place in the queue.
func (b *budget) giveBack(t *ticket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.elem != nil {
		b.queue(t).Remove(t.elem)
		t.elem = nil
	} else {
		b.account(t, -t.n)
	}
	b.grant()
}

func (b *budget) queue(t *ticket) *list.List {
	if t.low {
		return &b.prefetch
	}
	return &b.demand
}

func (b *budget) account(t *ticket, n int64) {
	b.held += n
	if t.low {
		b.heldLow += n
	}
}

// grant serves the queues as far as the bytes go.
func (b *budget) grant() {
	for b.grantFront(&b.demand, b.limit-b.held) {
	}
	if b.demand.Len() > 0 {
		return
	}
	for b.grantFront(&b.prefetch, min(b.limit-b.held, b.limit/4-b.heldLow)) {
	}
}

func (b *budget) grantFront(q *list.List, free int64) bool {
	front := q.Front()
	if front == nil {
		return false
	}
	t := front.Value.(*ticket) //nolint:errcheck // the lists hold nothing else
	if t.n > free {
		return false
	}
	q.Remove(front)
	t.elem = nil
	b.account(t, t.n)
	close(t.ready)
	return true
}

func (b *budget) inflight() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

// A buffer is memory lent by a pool.
type buffer struct {
	p     []byte
	class int
}

// A pool lends buffers whose sizes are powers of two.
type pool struct {
	classes [bits.UintSize]sync.Pool
	lent    atomic.Int64 // buffers outstanding
}

// roundUp returns the size of the buffer that get(n) lends.
func roundUp(n int64) int64 { return 1 << bits.Len64(uint64(n-1)) }

// get lends a buffer of n bytes with undefined content.
func (p *pool) get(n int64) *buffer {
	p.lent.Add(1)
	class := bits.Len64(uint64(n - 1))
	b, ok := p.classes[class].Get().(*buffer)
	if !ok {
		b = &buffer{p: make([]byte, 1<<class), class: class}
	}
	b.p = b.p[:n]
	return b
}

func (p *pool) put(b *buffer) {
	p.lent.Add(-1)
	p.classes[b.class].Put(b)
}
