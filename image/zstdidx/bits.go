// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"encoding/binary"
	"math/bits"
)

// margin is how many bytes lie before and behind what the decoder reads bits or
// literals from, so that it may read whole words without looking where it is.
const margin = 32

// A backward is a bit stream of which the last bit is read first. It lies in b
// from byte start on, with at least margin bytes before it; rem bits of it are
// not read. A negative rem tells that more was read than there is: what came
// of it is worthless, but all of it was inside b.
type backward struct {
	b     []byte
	start int
	rem   int
}

// newBackward returns the stream b[start:end], without the bit that marks its
// end.
func newBackward(b []byte, start, end int) (backward, error) {
	if end <= start || b[end-1] == 0 {
		return backward{}, malformed("bit stream without an end mark")
	}
	return backward{b, start, (end-start)*8 - 9 + bits.Len8(b[end-1])}, nil
}

// peek returns the next 57 bits or more at the top of a word. It is to be
// called before 57 bits more have been read than there are.
func (r *backward) peek() uint64 {
	e := (r.rem + 7) >> 3
	return binary.LittleEndian.Uint64(r.b[r.start+e-8:]) << (uint(e<<3-r.rem) & 63)
}

// take reads n bits, 32 at most.
func (r *backward) take(n int) int {
	v := top(r.peek(), uint8(n))
	r.rem -= n
	return int(v)
}

// top returns the top n bits of v; n is less than 64.
func top(v uint64, n uint8) uint64 { return v >> 1 >> ((63 - n) & 63) }

// A forward is a bit stream of which the lowest bit of the first byte is read
// first, as descriptions of tables are. Beyond its end it reads as zeros.
type forward struct {
	b   []byte
	pos int // bits read
}

// peek returns the next n bits, 24 at most.
func (r *forward) peek(n int) int {
	var v uint32
	for i := range 4 {
		if at := r.pos>>3 + i; at < len(r.b) {
			v |= uint32(r.b[at]) << (8 * i)
		}
	}
	return int(v >> (r.pos & 7) & (1<<n - 1))
}

// bytes returns how many bytes have been read a bit of.
func (r *forward) bytes() int { return (r.pos + 7) >> 3 }
