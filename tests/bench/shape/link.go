// SPDX-License-Identifier: Apache-2.0

package shape

import (
	"sync"
	"time"
)

// unit is what goes over a link in one piece, in bytes: 0.6 ms at 200 Mbit/s,
// so that transfers interleave as on a wire.
const unit = 16 << 10

// A link is one direction of a network: all transfers share its bandwidth.
type link struct {
	rate int64 // bytes per second; 0 is no bound

	mu   sync.Mutex // guards free
	free time.Time  // when all that was given to the link is through
}

// send gives n bytes to the link that were there at a time, and returns when
// they are through, behind all that was given to it before. That the sleep
// before them was longer than it should have been costs the link nothing.
func (l *link) send(at time.Time, n int) (through time.Time) {
	if l.rate == 0 {
		return at
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(at) {
		l.free = at
	}
	l.free = l.free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	return l.free
}
