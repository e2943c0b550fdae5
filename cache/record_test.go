// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"testing"
)

func validHeader() []byte {
	h := header{blockSize: 16 << 10, size: 12345, key: key{1, 2, 3}}
	return h.marshal()
}

// FuzzRecord: what the parser accepts, it writes back the same.
func FuzzRecord(f *testing.F) {
	f.Add(validHeader())
	f.Add(validHeader()[:headerSize-1])
	f.Add(append(validHeader(), make([]byte, 100)...))
	for _, i := range []int{0, 8, 12, 16, 23, 24, 56, 60} {
		b := validHeader()
		b[i] ^= 0x81
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			if h != (header{}) {
				t.Errorf("result %+v beside error %v", h, err)
			}
			return
		}
		if got := h.marshal(); !bytes.Equal(got, b[:headerSize]) {
			t.Errorf("parsed %x, wrote %x", b[:headerSize], got)
		}
	})
}

// FuzzTags: no record, whatever it says, makes a wrong byte readable.
func FuzzTags(f *testing.F) {
	f.Add(make([]byte, tagSize*4))
	f.Add(bytes.Repeat([]byte{0xff}, tagSize*64))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, tags []byte) {
		b := openZeros(t, 100<<10)
		if err := b.Prefetch(t.Context(), 0, 1<<20); err != nil {
			t.Fatal(err)
		}
		files := b.s.files.Load()
		if _, err := files.tags.WriteAt(tags, headerSize); err != nil {
			t.Fatal(err)
		}
		if _, err := files.data.WriteAt([]byte("rot"), 50<<10); err != nil {
			t.Fatal(err)
		}
		s := newStore(b.s.c, b.s.key, b.s.geo)
		s.open()
		defer s.close()
		s.recall(0, 100<<10)
		p := make([]byte, 100<<10)
		if n := s.readHit(p, 0); !bytes.Equal(p[:n], make([]byte, n)) {
			t.Errorf("wrong bytes among the first %d", n)
		}
	})
}

func TestTagTellsBlocksApart(t *testing.T) {
	a, b := make([]byte, 4096), make([]byte, 4096)
	b[4095] = 1
	seen := map[uint64]string{0: "absent"}
	for name, v := range map[string]uint64{
		"zeros at 0": tag(0, a), "zeros at 1": tag(1, a), "one at 0": tag(0, b), "short": tag(0, a[:100]),
	} {
		if other, ok := seen[v]; ok {
			t.Errorf("%s and %s have one tag", name, other)
		}
		seen[v] = name
	}
}
