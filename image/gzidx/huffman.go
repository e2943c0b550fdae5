// SPDX-License-Identifier: Apache-2.0

package gzidx

import "math/bits"

// A decoding table maps the next bits of the stream to an entry. Its first
// 1<<root entries are indexed by the next root bits; a code that is longer
// finds there the place of a second-level table, which is indexed by the bits
// that follow and sized by the longest code in it.
//
// The bits of an entry are
//
//	 0…5   how many bits to consume: the code's, or what is left of it in a
//	       second-level table, and the extra bits
//	 8…11  how many of them are the code's; of a link to a second-level table,
//	       how many bits index it
//	12     end of block
//	13     no code begins like this
//	14     link to a second-level table
//	15     one of the three above
//	16…30  literal, least length or least distance, or the place of the
//	       second-level table
//	31     literal
const (
	entryEnd     = 1<<12 | entryOdd
	entryInvalid = 1<<13 | entryOdd
	entryLink    = 1<<14 | entryOdd
	entryOdd     = 1 << 15
	entryLiteral = 1 << 31
)

const (
	literalRoot  = 11 // bits; 8 KiB of table, of which most blocks use a part
	distanceRoot = 8
	lengthRoot   = 7 // of the codes of code lengths: none is longer

	maxCode = 15 // bits

	// How long tables can be: by enumeration of all complete codes (zlib's
	// enough.c) at most 2342 entries for 288 symbols and 402 for 32. They are
	// rounded up to powers of two so that a mask spares the bounds check.
	literalSize  = 4096
	distanceSize = 512
)

type (
	literalTable  [literalSize]uint32
	distanceTable [distanceSize]uint32
	lengthTable   [1 << lengthRoot]uint32
)

// fillTable makes the table of the canonical code in which symbol i is
// lengths[i] bits long, and stands for the entry kind(i), but for the bits of
// the code. It reports whether the code is complete, or has but one symbol or
// none, as encoders write for blocks without matches.
func fillTable(table []uint32, root int, lengths []uint8, entries []uint32) bool {
	var c code
	if !c.count(lengths) {
		return false
	}
	if c.used < 2 {
		for i := range 1 << root {
			table[i] = entryInvalid | 1
		}
	}
	c.sort(lengths)
	c.fill(table, root, entries)
	return true
}

// A code is a canonical Huffman code on its way into a table.
type code struct {
	counts  [maxCode + 1]int // symbols of each length
	symbols [320]uint16      // by length, then value
	used    int              // symbols that have a code
}

// count counts the lengths and reports whether they make a code.
func (c *code) count(lengths []uint8) bool {
	for _, n := range lengths {
		c.counts[n&maxCode]++
	}
	c.used = len(lengths) - c.counts[0]
	c.counts[0] = 0
	left := 1
	for _, n := range c.counts[1:] {
		left = left<<1 - n
		if left < 0 {
			return false
		}
	}
	return left == 0 || c.used == 0 || c.used == 1 && c.counts[1] == 1
}

func (c *code) sort(lengths []uint8) {
	var next [maxCode + 2]int
	for n := 1; n <= maxCode; n++ {
		next[n+1] = next[n] + c.counts[n]
	}
	for i, n := range lengths {
		if n != 0 {
			c.symbols[next[n&maxCode]] = uint16(i)
			next[n&maxCode]++
		}
	}
}

// fill writes the entries of all codes. The stream has codes first bit lowest:
// word is a code with its bits reversed.
func (c *code) fill(table []uint32, root int, entries []uint32) {
	next, prefix, sub, width := 1<<root, -1, 0, 0
	word, k := 0, 0
	for n := 1; n <= maxCode; n++ {
		for left := c.counts[n]; left > 0; left-- {
			e := entries[c.symbols[k]]
			k++
			if n <= root {
				repeat(table[:1<<root], word, 1<<n, e+uint32(n)*0x101)
			} else {
				if p := word & (1<<root - 1); p != prefix {
					prefix, sub = p, next
					width = c.subWidth(n, left, root)
					next += 1 << width
					table[p] = entryLink | uint32(sub)<<16 | uint32(width)<<8 | uint32(root)
				}
				repeat(table[sub:sub+1<<width], word>>root, 1<<(n-root), e+uint32(n-root)*0x101)
			}
			word = increment(word, n)
		}
	}
}

// repeat puts e into every step-th entry of table from first on.
func repeat(table []uint32, first, step int, e uint32) {
	for i := first; i < len(table); i += step {
		table[i] = e
	}
}

// subWidth returns how many bits index the second-level table whose first code
// is n bits long, left of which are yet to come: as few as the codes that
// share its first root bits need.
func (c *code) subWidth(n, left, root int) int {
	width := n - root
	for room := 1<<width - left; room > 0 && n < maxCode; {
		n++
		width++
		room = room<<1 - c.counts[n]
	}
	return width
}

// increment adds one to the n bits of word, which are reversed.
func increment(word, n int) int {
	zeros := ^word & (1<<n - 1)
	if zeros == 0 {
		return 0
	}
	top := 1 << (bits.Len(uint(zeros)) - 1)
	return word&(top-1) | top
}

// What the symbols of the two alphabets stand for, as entries without a code
// (RFC 1951 section 3.2.5).
func literalEntries() *[288]uint32 {
	var e [288]uint32
	for i := range 256 {
		e[i] = entryLiteral | uint32(i)<<16
	}
	e[256] = entryEnd
	least := uint32(3)
	for i := 257; i < 285; i++ {
		extra := max((i-257)/4-1, 0)
		e[i] = least<<16 | uint32(extra)
		least += 1 << extra
	}
	e[285] = 258 << 16
	e[286], e[287] = entryInvalid, entryInvalid
	return &e
}

func distanceEntries() *[32]uint32 {
	var e [32]uint32
	least := uint32(1)
	for i := range 30 {
		extra := max(i/2-1, 0)
		e[i] = least<<16 | uint32(extra)
		least += 1 << extra
	}
	e[30], e[31] = entryInvalid, entryInvalid
	return &e
}
