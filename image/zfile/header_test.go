// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// Reference points of the format's checksum.
func TestChecksum(t *testing.T) {
	if got := checksum(0, nil); got != 0 {
		t.Errorf("checksum of nothing is %08x, want 0", got)
	}
	// The usual CRC-32C of this string is e3069283: inverted at both ends.
	if got := ^checksum(1<<32-1, []byte("123456789")); got != 0xe3069283 {
		t.Errorf("checksum is %08x", got)
	}
}

// FuzzHeader wants parse and marshal to be inverse: the fields of any header
// that parses survive, and a canonical one survives as bytes.
func FuzzHeader(f *testing.F) {
	h := header{
		flags: flagHeader | flagData | flagInfo | flagDigest, indexOffset: 512, blocks: 1, size: 1, indexCRC: 5,
		blockSize: 4096, algorithm: LZ4, checksums: true,
	}
	f.Add(h.marshal())
	h.flags, h.algorithm, h.checksums = flagData|flagSealed, Zstd, false
	f.Add(h.marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b, 0)
		if err != nil {
			return
		}
		m := h.marshal()
		again, err := parseHeader(m, 0)
		if err != nil || again != h {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
		if again := again.marshal(); !bytes.Equal(again, m) {
			t.Errorf("canonical bytes are not stable")
		}
	})
}

// A table against a plain list of offsets, for every block size.
func TestTable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for most := 1; most < 66_000; most = most*5/4 + 1 {
		x := newTable(7, 512, most)
		off := int64(512)
		var want []int64
		for i := range 1000 {
			if i%300 == 0 {
				x.grow(300)
			}
			want = append(want, off)
			n := most // the worst case first
			if i > 500 {
				n = rnd.IntN(most) + 1
			}
			x.add(n)
			off += int64(n)
		}
		for i, off := range append(want, off) {
			if got := x.offset(int64(i + 7)); got != off {
				t.Fatalf("blocks of at most %d bytes: block %d at %d, want %d", most, i, got, off)
			}
		}
	}
}
