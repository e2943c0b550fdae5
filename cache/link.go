// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"math/bits"
	"sync"
	"time"
)

// A link is what fetches have shown of the network: how long one waits for its
// first byte, and how fast bytes come while many do. They decide how much a
// request should ask for beyond what a reader wants, which saves a round trip if
// it is wanted later, and is in the way of other bytes if not. So a thin link
// gets small requests and a fat one large ones.
//
// The ways to all sources are one link: the slowest of them, that of the node,
// is mostly the same.
type link struct {
	mu      sync.Mutex // guards all below
	latency time.Duration
	seen    int     // first bytes
	rate    float64 // bytes per second; 0 if not known

	flowing int       // fetches between their first and their last byte
	since   time.Time // when the present period began
	moved   int64     // bytes of it
}

const (
	// near is the latency of sources that are asked for the usual amount: one
	// in the same building, where bytes and round trips both cost little.
	near = 2 * time.Millisecond

	// period is how long bytes must come without a pause to tell a rate. In
	// less time one sees buffers being emptied.
	period = 20 * time.Millisecond

	// worth is how long a request may take the link for what nobody has asked
	// for. On a thin link, of less than 400 Mbit/s, a start waits more for bytes
	// than for round trips, and that is half as long: NumPy fetches 3.0 times the
	// least possible there, where it would be 3.5 times.
	worth = 8 * time.Millisecond
	thin  = 50e6 // bytes per second

	// thinner is what no fat link is taken for, however busy the machine is. On
	// one of less than 240 Mbit/s, a region of which half is wanted is not filled.
	thinner = 30e6 // bytes per second
)

// first takes note of a fetch's first byte, which came so long after it was
// asked for. Every first is followed by one last.
func (l *link) first(now time.Time, after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen++; l.seen == 1 || after < l.latency {
		l.latency = after
	} else {
		l.latency += (after - l.latency) / 32 // a network may become slower
	}
	if l.flowing == 0 {
		l.since, l.moved = now, 0
	}
	l.flowing++
}

// landed takes note of n more bytes of a fetch. The rate is about the highest
// there was lately: connections that begin slowly do not tell what a link can
// carry.
func (l *link) landed(now time.Time, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.moved += n
	d := now.Sub(l.since)
	if d < period {
		return
	}
	weight := 1.0 / 2
	rate := float64(l.moved) / d.Seconds()
	if rate < l.rate {
		weight = 1.0 / 32
	}
	l.rate += (rate - l.rate) * weight
	l.since, l.moved = now, 0
}

// last takes note of the end of a fetch.
func (l *link) last() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flowing--
}

// dense returns how much of a region of so many bytes must have been asked for
// until the rest is, too: half, and on a thin link all of it, as far as the number
// of requests tells. Of Node.js's own library a good half is read: the rest of its
// regions costs a start 10 MB of 42, and spares it a fifth of its round trips.
func (l *link) dense(region int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate > 0 && l.rate < thinner {
		return region
	}
	return region / 2
}

// extent returns how many bytes a request for a few should ask for: a power of
// two from an eighth of usual to four times that.
func (l *link) extent(usual int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.latency < near || l.rate == 0 {
		return usual
	}
	n := l.rate * worth.Seconds()
	if l.rate < thin {
		n /= 2
	}
	n = min(max(n, float64(usual/8)), float64(4*usual))
	return 1 << (bits.Len64(uint64(n)) - 1)
}
