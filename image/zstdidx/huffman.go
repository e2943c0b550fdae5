// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"encoding/binary"
	"math/bits"
)

// maxHuffman is the length of the longest Huffman code, bits.
const maxHuffman = 11

// A huffman is a table of Huffman codes, looked up by the next log bits.
type huffman struct {
	log     uint8
	entries [1 << maxHuffman]uint16 // symbol << 8 | bits of its code
}

// readHuffman parses the description of a Huffman table at the start of b,
// which lies in a block's buffer from byte at on, and builds it. It returns how
// many bytes the description has.
func (h *huffman) read(in []byte, at, end int) (n int, err error) {
	if at >= end {
		return 0, malformed("no room for a Huffman table")
	}
	var weights [256]uint8
	var symbols int
	n = 1 + int(in[at])
	if direct := int(in[at]) - 127; direct > 0 {
		n = 1 + (direct+1)/2
		symbols = direct
	}
	if n > end-at {
		return 0, malformed("Huffman table description of %d bytes, %d are there", n, end-at)
	}
	if symbols > 0 {
		for i := range symbols {
			weights[i] = in[at+1+i/2] >> (4 * (1 - i&1)) & 15
		}
	} else if symbols, err = readWeights(in, at+1, at+n, weights[:255]); err != nil {
		return 0, err
	}
	return n, h.build(&weights, symbols)
}

// readWeights decodes the weights in[start:end], which two FSE states in turn
// stand for.
func readWeights(in []byte, start, end int, weights []uint8) (n int, err error) {
	var counts [maxHuffman + 2]int16
	symbols, log, head, err := readCounts(in[start:end], counts[:], 6)
	if err != nil {
		return 0, err
	}
	var t [64]step
	build(t[:], counts[:symbols], log)
	r, err := newBackward(in, start+head, end)
	if err != nil {
		return 0, err
	}
	states := [2]int{r.take(log), r.take(log)}
	if r.rem < 0 {
		return 0, malformed("Huffman weights without two states")
	}
	for turn := 0; ; turn ^= 1 {
		if n+2 > len(weights) {
			return 0, malformed("more than %d Huffman weights", len(weights))
		}
		s := t[states[turn]]
		weights[n] = uint8(s.base)
		n++
		states[turn] = int(s.next) + r.take(int(s.bits))
		if r.rem < 0 {
			weights[n] = uint8(t[states[turn^1]].base)
			return n + 1, nil
		}
	}
}

// build makes the table for the weights of the given number of symbols, to
// which it adds that of the last.
func (h *huffman) build(weights *[256]uint8, symbols int) error {
	var ranks [maxHuffman + 2]int
	sum := 0
	for _, w := range weights[:symbols] {
		if w > maxHuffman {
			return malformed("Huffman weight %d", w)
		}
		ranks[w]++
		sum += 1 << w >> 1
	}
	log := bits.Len(uint(sum))
	rest := 1<<log - sum
	if sum == 0 || log > maxHuffman || rest&(rest-1) != 0 {
		return malformed("Huffman weights of sum %d", sum)
	}
	last := bits.Len(uint(rest))
	weights[symbols] = uint8(last)
	ranks[last]++
	if ranks[1] < 2 {
		return malformed("Huffman codes without a pair of the longest")
	}
	h.log = uint8(log)
	var at [maxHuffman + 2]int
	for w := 1; w <= log; w++ {
		at[w+1] = at[w] + ranks[w]<<w>>1
	}
	for s, w := range weights[:symbols+1] {
		if w == 0 {
			continue
		}
		e := uint16(s)<<8 | uint16(log+1-int(w))
		codes := h.entries[at[w] : at[w]+1<<w>>1]
		for i := range codes {
			codes[i] = e
		}
		at[w] += len(codes)
	}
	return nil
}

// decode1 decodes dst from the one stream in[start:end].
func (h *huffman) decode1(dst, in []byte, start, end int) error {
	r, err := newBackward(in, start, end)
	if err != nil {
		return err
	}
	return h.finish(dst, r)
}

// decode4 decodes dst from the four streams in[start:end], which begin with a
// table of the lengths of three.
func (h *huffman) decode4(dst, in []byte, start, end int) error {
	if end-start < 10 {
		return malformed("four Huffman streams in %d bytes", end-start)
	}
	quarter := (len(dst) + 3) / 4
	if quarter*3 > len(dst) {
		return malformed("four Huffman streams for %d bytes", len(dst))
	}
	var r [4]backward
	at := start + 6
	for i := range r {
		next := end
		if i < 3 {
			next = at + int(binary.LittleEndian.Uint16(in[start+2*i:]))
		}
		if next > end {
			return malformed("Huffman stream of %d bytes, %d are there", next-at, end-at)
		}
		var err error
		if r[i], err = newBackward(in, at, next); err != nil {
			return err
		}
		at = next
	}
	done := h.abreast(dst, quarter, &r)
	for i := range r {
		part := dst[i*quarter:]
		if i < 3 {
			part = part[:quarter]
		}
		if err := h.finish(part[done:], r[i]); err != nil {
			return err
		}
	}
	return nil
}

// perWord is how many codes a word of 57 bits is sure to have.
const perWord = 57 / maxHuffman

// abreast decodes most of four streams at once, which a processor can do side
// by side, and returns how many bytes of each.
func (h *huffman) abreast(dst []byte, quarter int, r *[4]backward) int {
	in := r[0].b
	r0, r1, r2, r3 := r[0].rem, r[1].rem, r[2].rem, r[3].rem
	s0, s1, s2, s3 := r[0].start-8, r[1].start-8, r[2].start-8, r[3].start-8
	d0, d1, d2, d3 := dst[:quarter], dst[quarter:2*quarter], dst[2*quarter:3*quarter], dst[3*quarter:]
	shift := (64 - h.log) & 63
	n := 0
	for ; n+perWord <= len(d3) && r0 >= 57 && r1 >= 57 && r2 >= 57 && r3 >= 57; n += perWord {
		e0, e1, e2, e3 := (r0+7)>>3, (r1+7)>>3, (r2+7)>>3, (r3+7)>>3
		v0 := binary.LittleEndian.Uint64(in[s0+e0:]) << (uint(e0<<3-r0) & 63)
		v1 := binary.LittleEndian.Uint64(in[s1+e1:]) << (uint(e1<<3-r1) & 63)
		v2 := binary.LittleEndian.Uint64(in[s2+e2:]) << (uint(e2<<3-r2) & 63)
		v3 := binary.LittleEndian.Uint64(in[s3+e3:]) << (uint(e3<<3-r3) & 63)
		p0, p1, p2, p3 := (*[perWord]byte)(d0[n:]), (*[perWord]byte)(d1[n:]), (*[perWord]byte)(d2[n:]), (*[perWord]byte)(d3[n:])
		for k := range perWord {
			c0 := h.entries[v0>>shift&(1<<maxHuffman-1)]
			c1 := h.entries[v1>>shift&(1<<maxHuffman-1)]
			c2 := h.entries[v2>>shift&(1<<maxHuffman-1)]
			c3 := h.entries[v3>>shift&(1<<maxHuffman-1)]
			v0 <<= c0 & 63
			v1 <<= c1 & 63
			v2 <<= c2 & 63
			v3 <<= c3 & 63
			r0 -= int(c0 & 63)
			r1 -= int(c1 & 63)
			r2 -= int(c2 & 63)
			r3 -= int(c3 & 63)
			p0[k], p1[k], p2[k], p3[k] = byte(c0>>8), byte(c1>>8), byte(c2>>8), byte(c3>>8)
		}
	}
	r[0].rem, r[1].rem, r[2].rem, r[3].rem = r0, r1, r2, r3
	return n
}

// finish decodes dst from what is left of a stream, all of it.
func (h *huffman) finish(dst []byte, r backward) error {
	shift := (64 - h.log) & 63
	for i := range dst {
		c := h.entries[r.peek()>>shift&(1<<maxHuffman-1)]
		dst[i] = byte(c >> 8)
		if r.rem -= int(c & 63); r.rem < 0 {
			break
		}
	}
	if r.rem != 0 {
		return malformed("Huffman stream of other length than its content")
	}
	return nil
}
