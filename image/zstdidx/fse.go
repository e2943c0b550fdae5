// SPDX-License-Identifier: Apache-2.0

package zstdidx

import "math/bits"

// A step is a state of an FSE decoder: what it stands for, and where it goes.
type step struct {
	base  uint32 // value, to which extra bits are added; a symbol at first
	next  uint16 // next state, to which bits are added
	extra uint8  // bits of the value
	bits  uint8  // bits of the next state
}

// maxStates is the number of states of the largest table, of 9 bits.
const maxStates = 512

// readCounts parses the description of an FSE table at the start of b: how
// often each symbol occurs, -1 for less than once, and the binary logarithm of
// the table's size. It returns how many bytes the description has.
func readCounts(b []byte, counts []int16, maxLog int) (symbols, log, n int, err error) {
	r := forward{b: b}
	log = r.peek(4) + 5
	r.pos = 4
	if log > maxLog {
		return 0, 0, 0, malformed("FSE table of %d bits, at most %d are possible", log, maxLog)
	}
	left := 1<<log + 1 // what is left to be shared out, and one
	for left > 1 {
		if symbols == len(counts) {
			return 0, 0, 0, malformed("FSE table of more than %d symbols", symbols)
		}
		count := r.count(left)
		left -= max(count, -count)
		counts[symbols] = int16(count)
		symbols++
		for repeat := 3; count == 0 && repeat == 3; {
			repeat = r.peek(2)
			r.pos += 2
			if symbols+repeat > len(counts) {
				return 0, 0, 0, malformed("FSE table of more than %d symbols", len(counts))
			}
			clear(counts[symbols : symbols+repeat])
			symbols += repeat
		}
	}
	if left < 1 || r.bytes() > len(b) {
		return 0, 0, 0, malformed("FSE table description of wrong length")
	}
	return symbols, log, r.bytes(), nil
}

// count reads one count, a number from 0 to left stored with the fewest bits,
// less one.
func (r *forward) count(left int) int {
	width := bits.Len(uint(left))
	short := 1<<width - 1 - left // numbers of one bit less
	v := r.peek(width)
	low := v & (1<<(width-1) - 1)
	if low < short {
		r.pos += width - 1
		return low - 1
	}
	r.pos += width
	if v >= 1<<(width-1) {
		v -= short
	}
	return v - 1
}

// build fills t with the states for the counts, of 1<<log in all. Their bases
// are symbols.
func build(t []step, counts []int16, log int) {
	size := 1 << log
	high := size
	var next [256]uint16
	for s, c := range counts {
		next[s] = uint16(c)
		if c == -1 {
			high--
			t[high].base = uint32(s)
			next[s] = 1
		}
	}
	spread(t[:size], counts, high)
	for i := range t[:size] {
		s := &t[i]
		x := next[s.base]
		next[s.base]++
		s.bits = uint8(log + 1 - bits.Len16(x))
		s.next = x<<s.bits - uint16(size)
		s.extra = 0
	}
}

// spread gives the states below high to the symbols that occur at least once.
func spread(t []step, counts []int16, high int) {
	stride := len(t)>>1 + len(t)>>3 + 3
	pos := 0
	for s, c := range counts {
		for range c {
			t[pos].base = uint32(s)
			for pos = (pos + stride) & (len(t) - 1); pos >= high; {
				pos = (pos + stride) & (len(t) - 1)
			}
		}
	}
}
