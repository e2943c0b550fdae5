// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"math/bits"
	"sort"
)

// marks note which bytes before a span its matches take. Bit i stands for the
// byte i+1 before the span.
type marks struct {
	words []uint64
	count int // bits set
}

// add marks n bytes from distance on, towards the span.
func (m *marks) add(distance, n int) {
	lo, hi := distance-n, distance // bits
	if need := (hi + 63) >> 6; need > len(m.words) {
		if need > cap(m.words) {
			grown := make([]uint64, need, max(need, 2*cap(m.words)))
			copy(grown, m.words)
			m.words = grown
		}
		m.words = m.words[:need]
	}
	for lo < hi {
		w, from := lo>>6, lo&63
		to := min(64, from+hi-lo)
		mask := ^uint64(0) << from
		if to < 64 {
			mask &= 1<<to - 1
		}
		m.count += bits.OnesCount64(mask &^ m.words[w])
		m.words[w] |= mask
		lo += to - from
	}
}

func (m *marks) reset() {
	clear(m.words)
	m.words = m.words[:0]
	m.count = 0
}

// An extent is a run of bytes before a span.
type extent struct {
	distance int // of its first byte, from the span
	n        int
	at       int // where its bytes are
}

// extents returns the runs of marked bytes, farthest first, as one where at
// most gap bytes lie between.
func (m *marks) extents(gap int) []extent {
	var all []extent
	for w := len(m.words) - 1; w >= 0; w-- {
		word := m.words[w]
		for word != 0 {
			hi := bits.Len64(word)
			ones := bits.LeadingZeros64(^(word << (64 - hi)))
			word &= 1<<(hi-ones) - 1
			all = addRun(all, w<<6+hi, ones, gap)
		}
	}
	return all
}

// addRun adds n bytes that begin at distance, or lengthens the last extent.
func addRun(all []extent, distance, n, gap int) []extent {
	if len(all) > 0 {
		last := &all[len(all)-1]
		if last.distance-last.n-distance <= gap {
			last.n = last.distance - (distance - n)
			return all
		}
	}
	return append(all, extent{distance: distance, n: n})
}

// A past is what an index holds of the bytes before a span.
type past struct {
	extents []extent // farthest first
	bytes   []byte
}

// copy fills p with the bytes from distance on. It reports false if they are
// not here.
func (b *past) copy(p []byte, distance int) bool {
	i := sort.Search(len(b.extents), func(i int) bool {
		return b.extents[i].distance < distance
	}) - 1
	if i < 0 {
		return false
	}
	e := b.extents[i]
	skip := e.distance - distance
	if skip+len(p) > e.n {
		return false
	}
	copy(p, b.bytes[e.at+skip:])
	return true
}
