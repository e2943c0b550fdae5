// SPDX-License-Identifier: Apache-2.0

package ext4

import "math/bits"

// A bitmap has a bit for every block or inode of a group, the lowest of a byte
// first; a bit that is set is in use. Its length is a multiple of 8 bytes.
type bitmap []byte

func (m bitmap) isSet(i uint64) bool { return m[i/8]>>(i%8)&1 != 0 }

// next returns the first bit in [from, limit) that is set, or clear if set is
// false; limit if there is none.
func (m bitmap) next(set bool, from, limit uint64) uint64 {
	flip := uint64(0)
	if !set {
		flip = ^uint64(0)
	}
	for i := from; i < limit; i = i&^63 + 64 {
		word := (le.Uint64(m[i/64*8:]) ^ flip) >> (i % 64)
		if word != 0 {
			return min(i+uint64(bits.TrailingZeros64(word)), limit)
		}
	}
	return limit
}

// put sets or clears bits [from, from+n).
func (m bitmap) put(set bool, from, n uint64) {
	for i := from; i < from+n; {
		if i%8 == 0 && from+n-i >= 8 {
			m[i/8] = 0
			if set {
				m[i/8] = 0xff
			}
			i += 8
			continue
		}
		m[i/8] &^= 1 << (i % 8)
		if set {
			m[i/8] |= 1 << (i % 8)
		}
		i++
	}
}

// all reports whether bits [from, from+n) are set, or clear if set is false.
func (m bitmap) all(set bool, from, n uint64) bool {
	return m.next(!set, from, from+n) == from+n
}
