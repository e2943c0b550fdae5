// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// A span costs as many allocations with many pieces as with one, and they come in
// order, each with all before it.
func TestPiecesDoNotAllocate(t *testing.T) {
	allocs := func(size int) float64 {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		z := w.EncodeAll(bytes.Repeat([]byte("a span of many pieces; "), size/20), nil)
		r := NewReader(bytes.NewReader(z), Options{MaxSpan: maxSpan})
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		if _, err := r.WriteIndex(&file); err != nil {
			t.Fatal(err)
		}
		x, err := readIndex(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if len(x.spans) != 1 {
			t.Fatalf("%d spans, want one", len(x.spans))
		}
		d, in := &spanDecoder{x: x, d: newDecoder(nil)}, bytes.NewReader(nil)
		at, calls := 0, 0
		found := func(p []byte) error {
			if calls++; len(p) <= at || !bytes.Equal(p[at:], content[at:len(p)]) {
				t.Errorf("found %d bytes after %d, or others", len(p), at)
			}
			at = len(p)
			return nil
		}
		n := testing.AllocsPerRun(5, func() {
			in.Reset(z[x.spans[0].pos:])
			at, calls = 0, 0
			if err := d.Reset(in, 0); err != nil {
				t.Fatal(err)
			}
			if err := d.Decode(0, found); err != nil || at != len(content) {
				t.Fatalf("found %d bytes of %d, %v", at, len(content), err)
			}
		})
		if want := len(content) / maxBlock; calls < want {
			t.Errorf("%d bytes came in %d pieces, want %d", len(content), calls, want)
		}
		return n
	}
	// A few may be for what the collector took, of 8 pieces or 16.
	if one, many := allocs(60<<10), allocs(1<<20-1); many > one+4 {
		t.Errorf("%v allocations for a span of 1 MiB, %v for one of 60 KiB", many, one)
	}
}
