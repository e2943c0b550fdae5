// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"context"
	"io/fs"
	"slices"
	"sync"
	"time"
)

// queue gives out the slots of one host.
type queue struct {
	share [classes]int // slots for a class and all below it

	mu      sync.Mutex // guards what follows
	used    [classes]int
	waiting [classes][]chan struct{} // oldest first; closed with the slot given
	quiet   chan struct{}            // closed when no read on demand is under way; nil if nobody waits for that
}

// enter waits for a slot for a read of class c.
func (q *queue) enter(ctx context.Context, c Class, closed <-chan struct{}) error {
	q.mu.Lock()
	if q.free(c) {
		q.used[c]++
		q.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	q.waiting[c] = append(q.waiting[c], turn)
	q.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		q.abandon(c, turn)
		return ctx.Err()
	case <-closed:
		q.abandon(c, turn)
		return fs.ErrClosed
	}
}

// free reports whether a read of class c may begin. Nobody of its class or
// above is passed over: they would wait for the same slot, and leave gives a
// slot to them first.
func (q *queue) free(c Class) bool {
	below := 0
	for class := Background; ; class-- {
		below += q.used[class]
		if class <= c && below >= q.share[class] {
			return false
		}
		if class == Demand {
			return true
		}
	}
}

// leave gives back a slot of class c.
func (q *queue) leave(c Class) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release(c)
}

// release gives a slot of class c to who is next. q.mu is held.
func (q *queue) release(c Class) {
	q.used[c]--
	q.admit()
	if q.used[Demand] == 0 && q.quiet != nil {
		close(q.quiet)
		q.quiet = nil
	}
}

// yield waits while reads on demand are under way, which share the link, but
// not for ever: where there always are some, a Background read goes on slowly.
func (q *queue) yield(ctx context.Context, closed <-chan struct{}) error {
	quiet := q.awaited()
	if quiet == nil {
		return nil
	}
	t := time.NewTimer(maxYield)
	defer t.Stop()
	select {
	case <-quiet:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-closed:
		return fs.ErrClosed
	}
}

// awaited returns what is closed when no read on demand is under way, or nil if
// none is.
func (q *queue) awaited() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used[Demand] == 0 {
		return nil
	}
	if q.quiet == nil {
		q.quiet = make(chan struct{})
	}
	return q.quiet
}

// admit lets in whoever waits and may begin, the urgent first. q.mu is held.
func (q *queue) admit() {
	for c := range classes {
		for len(q.waiting[c]) > 0 && q.free(c) {
			close(q.waiting[c][0])
			q.waiting[c] = q.waiting[c][1:]
			q.used[c]++
		}
	}
}

// abandon stops waiting, and gives back the slot where one came meanwhile.
func (q *queue) abandon(c Class, turn chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.waiting[c], turn); i >= 0 {
		q.waiting[c] = slices.Delete(q.waiting[c], i, i+1)
		return
	}
	q.release(c)
}
