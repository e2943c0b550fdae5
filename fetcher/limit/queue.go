// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"context"
	"io/fs"
	"slices"
	"sync"
)

// queue gives out the slots of one host.
type queue struct {
	share [classes]int // slots for a class and all below it

	mu      sync.Mutex // guards what follows
	used    [classes]int
	waiting [classes][]chan struct{} // oldest first; closed with the slot given
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
	q.used[c]--
	q.admit()
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
	q.used[c]--
	q.admit()
}
