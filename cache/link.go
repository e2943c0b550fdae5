// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"math/bits"
	"sync"
	"time"
)

// A link is what fetches have shown of the network: how long one waits for its
// first byte, and how fast bytes come while any do. Both decide how much a
// request should ask for beyond what a reader wants. What it asks for costs the
// time of its transfer, and saves a round trip if it is wanted later; so a thin
// link gets small requests and a fat one large ones.
//
// The ways to all sources are one link: the slowest of them, that of the node,
// is mostly the same.
type link struct {
	mu      sync.Mutex // guards all below
	latency time.Duration
	seen    int // first bytes

	flowing int       // fetches between their first and their last byte
	counted time.Time // until when busy and moved are counted, while any flows
	busy    time.Duration
	moved   int64 // bytes
}

const (
	// near is the latency of sources that are asked for the usual amount: one
	// in the same building, where bytes and round trips both cost little.
	near = 2 * time.Millisecond

	// leastSeen is how many first bytes, and leastMoved how many bytes, tell
	// something: those that open an image do.
	leastSeen  = 4
	leastMoved = 256 << 10

	// share is how much shorter the transfer of what a request asks for is than
	// the wait for its first byte. With 32 a start's reads bring 1.9 times the
	// bytes that they want over 20 ms and 1 Gbit/s, and 1.5 times over 50 ms and
	// 200 Mbit/s; with 8, 2.4 times, and wait 0.75 times as often.
	share = 32

	// memory is how many bytes the rate is taken of: 2 s at 25 Mbit/s, so that
	// a link that others use as well is seen as it is now.
	memory = 8 << 20
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
		l.counted = now
	}
	l.flowing++
}

// last takes note of the end of a fetch that has brought n bytes behind its
// first ones.
func (l *link) last(now time.Time, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flowing--
	l.busy += now.Sub(l.counted)
	l.counted = now
	if l.moved += n; l.moved > memory {
		l.moved, l.busy = l.moved/2, l.busy/2
	}
}

// extent returns how many bytes a request for a few should ask for: a power of
// two from an eighth of usual to four times that.
func (l *link) extent(usual int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.latency < near || l.seen < leastSeen || l.moved < leastMoved || l.busy <= 0 {
		return usual
	}
	n := float64(l.moved) / l.busy.Seconds() * l.latency.Seconds() / share
	n = min(max(n, float64(usual/8)), float64(4*usual))
	return 1 << (bits.Len64(uint64(n)) - 1)
}
