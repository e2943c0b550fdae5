// SPDX-License-Identifier: Apache-2.0

package spans

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
)

// A progress is how far a span is decoded, for all who wait for some of it.
type progress struct {
	mu      sync.Mutex // guards all below
	data    []byte     // what was found right so far, from the span's start on
	over    bool       // no more will come
	err     error      // why, if that is not all
	used    bool       // somebody got some of it
	need    int        // how much of it is wanted, bytes
	size    int        // how much there is
	waiters []*waiter
}

// errEnough ends the decoding of a span of which no more is wanted.
var errEnough = errors.New("no more of the span is wanted")

// want has n bytes decoded at least, if that is not over.
func (p *progress) want(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return n <= len(p.data)
	}
	p.need = max(p.need, n)
	return true
}

// wanted returns how much is to be decoded, of how much there is.
func (p *progress) wanted() (need, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.need, p.size
}

// enough reports whether the decoding has come as far as is wanted, but not to
// the end.
func (p *progress) enough() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.data) >= p.need && len(p.data) < p.size
}

// settle ends a decoding that has come as far as is wanted, and reports whether it
// still has.
func (p *progress) settle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.data) < p.need {
		return false
	}
	p.over = true
	p.wake()
	return true
}

// A waiter waits for the first n bytes of one span after the other.
type waiter struct {
	n     int
	ready chan struct{} // takes one; nil before the first time
}

// grow takes content for what was found right so far, and reports whether it can
// be: it must begin with what was handed out already, maybe of a first try that
// failed further on.
func (p *progress) grow(content []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(content) <= len(p.data) {
		return true // by another try
	}
	if !bytes.Equal(content[:len(p.data)], p.data) { // which is no work in the same memory
		return false
	}
	p.data = content
	p.wake()
	return true
}

// end says that nothing comes any more.
func (p *progress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over, p.err = true, err
	p.wake()
}

// wake wakes the waiters that have what they want, or will not get it. p.mu is
// held.
func (p *progress) wake() {
	p.waiters = slices.DeleteFunc(p.waiters, func(w *waiter) bool {
		if !p.over && len(p.data) < w.n {
			return false
		}
		w.ready <- struct{}{} // it has room, as who is no waiter took what was in it
		return true
	})
}

// wait returns the content as soon as there are n bytes, from its start on. Where
// there will be fewer, it returns these, and why.
func (p *progress) wait(ctx context.Context, w *waiter, n int) ([]byte, error) {
	w.n = n
	for !p.look(w) {
		select {
		case <-w.ready:
		case <-ctx.Done():
			p.part(w)
			return nil, ctx.Err()
		}
	}
	return p.take(n)
}

// look reports whether there is what w wants. If it is still to come, w waits.
func (p *progress) look(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || len(p.data) >= w.n {
		return true
	}
	if w.ready == nil {
		w.ready = make(chan struct{}, 1)
	}
	p.waiters = append(p.waiters, w)
	return false
}

func (p *progress) take(n int) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = p.used || len(p.data) > 0
	if len(p.data) < n {
		return p.data, p.err
	}
	return p.data, nil
}

// part has w wait no longer.
func (p *progress) part(w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiters = slices.DeleteFunc(p.waiters, func(o *waiter) bool { return o == w })
	select {
	case <-w.ready: // it was woken in the meantime
	default:
	}
}

// begun reports whether somebody has a part of what is still being decoded.
func (p *progress) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used && !p.over
}
