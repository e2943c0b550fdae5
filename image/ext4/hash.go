// SPDX-License-Identifier: Apache-2.0

package ext4

import "math/bits"

// Versions of the hash that orders the names of a directory with an index.
// The last three take the bytes of a name as unsigned. The values are durable.
const (
	hashLegacy = iota
	hashHalfMD4
	hashTEA
	hashLegacyUnsigned
	hashHalfMD4Unsigned
	hashTEAUnsigned
)

// nameHash returns the hash of a name. The lowest bit is clear: an index keeps
// another mark there.
func nameHash(name string, version uint8, seed [4]uint32) uint32 {
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != [4]uint32{} {
		buf = seed
	}
	signed := version < hashLegacyUnsigned
	var h uint32
	switch version % hashLegacyUnsigned {
	case hashLegacy:
		h = legacyHash(name, signed)
	case hashHalfMD4:
		for ; len(name) > 0; name = name[min(32, len(name)):] {
			var in [8]uint32
			packName(in[:], name, signed)
			halfMD4(&buf, &in)
		}
		h = buf[1]
	case hashTEA:
		for ; len(name) > 0; name = name[min(16, len(name)):] {
			var in [4]uint32
			packName(in[:], name, signed)
			tea(&buf, &in)
		}
		h = buf[0]
	}
	h &^= 1
	if h == 0xfffffffe { // stands for the end of a directory
		h = 0xfffffffc
	}
	return h
}

// widen returns a byte of a name as the C char it is hashed as.
func widen(c byte, signed bool) uint32 {
	if signed {
		return uint32(int32(int8(c)))
	}
	return uint32(c)
}

func legacyHash(name string, signed bool) uint32 {
	h0, h1 := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for i := range len(name) {
		h := h1 + (h0 ^ widen(name[i], signed)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7fffffff
		}
		h0, h1 = h, h0
	}
	return h0 << 1
}

// packName fills words with the beginning of name, four bytes each, and with
// its length behind it.
func packName(words []uint32, name string, signed bool) {
	pad := uint32(len(name)) * 0x01010101
	if len(name) > 255 {
		pad = uint32(len(name)&0xffff) * 0x10001 // never: names are shorter
	}
	for i := range words {
		words[i] = pad
		for j := 4 * i; j < min(4*i+4, len(name)); j++ {
			words[i] = words[i]<<8 + widen(name[j], signed)
		}
	}
}

// halfMD4 is MD4 with three rounds of eight steps.
func halfMD4(buf *[4]uint32, in *[8]uint32) {
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	step := func(f, x uint32, s int) {
		a, b, c, d = d, bits.RotateLeft32(a+f+x, s), b, c
	}
	for i, s := range [8]int{3, 7, 11, 19, 3, 7, 11, 19} {
		step(d^b&(c^d), in[i], s)
	}
	const k2, k3 = 0x5a827999, 0x6ed9eba1 // √2, √3
	for i, s := range [8]int{3, 5, 9, 13, 3, 5, 9, 13} {
		step(b&c+(b^c)&d, in[[8]int{1, 3, 5, 7, 0, 2, 4, 6}[i]]+k2, s)
	}
	for i, s := range [8]int{3, 9, 11, 15, 3, 9, 11, 15} {
		step(b^c^d, in[[8]int{3, 7, 2, 6, 1, 5, 0, 4}[i]]+k3, s)
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}

// tea is the Tiny Encryption Algorithm with 16 rounds, name as the key.
func tea(buf *[4]uint32, in *[4]uint32) {
	const delta = 0x9e3779b9
	sum, b0, b1 := uint32(0), buf[0], buf[1]
	for range 16 {
		sum += delta
		b0 += (b1<<4 + in[0]) ^ (b1 + sum) ^ (b1>>5 + in[1])
		b1 += (b0<<4 + in[2]) ^ (b0 + sum) ^ (b0>>5 + in[3])
	}
	buf[0] += b0
	buf[1] += b1
}
