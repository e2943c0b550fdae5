// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// maxInflated bounds what tests inflate (bytes).
const maxInflated = 1 << 20

// inflate decodes a DEFLATE stream that comes in pieces of one byte or more,
// and returns what follows it, too.
func inflate(r io.Reader) (out []byte, err error) {
	f := newInflater()
	f.reset(r, 0)
	f.out = make([]byte, windowSize+slack)
	for !f.final || f.inside {
		if !f.inside {
			if err := f.header(); err != nil {
				return nil, err
			}
		}
		if _, err := f.body(); err != nil {
			return nil, err
		}
		if len(f.out)-f.w < slack {
			f.out = append(f.out, make([]byte, len(f.out))...)
		}
		if f.w > maxInflated {
			return nil, io.ErrShortBuffer
		}
	}
	return f.out[:f.w], f.align()
}

// FuzzInflate wants of every stream what compress/flate makes of it.
func FuzzInflate(f *testing.F) {
	text := bytes.Repeat([]byte("to be or not to be, that is the question; "), 50)
	for level := flate.HuffmanOnly; level <= 9; level++ {
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, level)
		if err != nil {
			f.Fatal(err)
		}
		for _, p := range [][]byte{text[:20], text, make([]byte, 70_000)} {
			_, err := w.Write(p)
			if err := errors.Join(err, w.Flush()); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{3, 0})       // a fixed block without content
	f.Add([]byte{0x4b, 4, 0}) // "a"
	f.Add([]byte{1, 1, 0, 0xfe, 0xff, 'x'})
	f.Fuzz(func(t *testing.T, z []byte) {
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(z)), maxInflated+1))
		got, err := inflate(bytes.NewReader(z))
		if errors.Is(err, io.ErrShortBuffer) || len(want) > maxInflated {
			return
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("got %v, compress/flate says %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("inflated to %d bytes that are not the %d of compress/flate", len(got), len(want))
		}
		if len(z) > 1<<12 {
			return
		}
		again, err2 := inflate(iotest.OneByteReader(bytes.NewReader(z)))
		if !bytes.Equal(got, again) || (err == nil) != (err2 == nil) {
			t.Fatalf("byte by byte: %d bytes, %v; at once %d, %v", len(again), err2, len(got), err)
		}
	})
}

// Tables hold all codes that there can be.
func TestTableSizes(t *testing.T) {
	kind := literalEntries()
	for _, tt := range []struct{ symbols, root, size int }{{288, literalRoot, literalSize}, {32, distanceRoot, distanceSize}} {
		// One code of each length and the rest at the longest: it needs most
		// second-level tables.
		for short := range 16 {
			lengths := skewed(tt.symbols, short)
			table := make([]uint32, tt.size)
			if lengths != nil && !fillTable(table, tt.root, lengths, kind[:tt.symbols]) {
				t.Errorf("%d symbols, %d short: not a code", tt.symbols, short)
			}
		}
	}
}

// skewed returns the lengths of a complete code of n symbols at most whose
// first codes are 1, 2, … short bits long, nil if there is none.
func skewed(n, short int) []uint8 {
	var lengths []uint8
	for i := 1; i <= short; i++ {
		lengths = append(lengths, uint8(i))
	}
	left := 1 // codes of the present length that are free
	at := short
	for at < maxCode && len(lengths)+2*left <= n {
		left *= 2
		at++
	}
	if len(lengths)+left > n {
		return nil
	}
	// Split as many of the free codes as there are symbols for.
	split := min(n-len(lengths)-left, left)
	if at == maxCode {
		split = 0
	}
	for range left - split {
		lengths = append(lengths, uint8(at))
	}
	for range 2 * split {
		lengths = append(lengths, uint8(at+1))
	}
	return lengths
}

// What nobody would read is not written.
func TestWriteIndexOfSpanTooLong(t *testing.T) {
	z := NewReader(nil, Options{})
	z.points, z.sums, z.base, z.err = make([]point, 1), make([]uint32, 1), MaxSpan+1, io.EOF
	if _, err := z.WriteIndex(io.Discard); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
}
