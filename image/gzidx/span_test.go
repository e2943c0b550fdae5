// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"
)

// A span costs as many allocations with many pieces as with one, and they come in
// order, each with all before it.
func TestPiecesDoNotAllocate(t *testing.T) {
	allocs := func(size int) float64 {
		var z, file bytes.Buffer
		w := gzip.NewWriter(&z)
		_, _ = w.Write(bytes.Repeat([]byte("a span of many pieces; "), size/20)) // never fails
		_ = w.Close()
		r := NewReader(bytes.NewReader(z.Bytes()), Options{Span: MaxSpan})
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.WriteIndex(&file); err != nil {
			t.Fatal(err)
		}
		x, err := readIndex(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Fatal(err)
		}
		d, in := &decoder{f: newInflater(), x: x}, bytes.NewReader(nil)
		at, calls := 0, 0
		found := func(p []byte) error {
			if calls++; len(p) <= at || !bytes.Equal(p[at:], content[at:len(p)]) {
				t.Errorf("found %d bytes after %d, or others", len(p), at)
			}
			at = len(p)
			return nil
		}
		n := testing.AllocsPerRun(5, func() {
			in.Reset(z.Bytes()[x.list[0].start():])
			at, calls = 0, 0
			if err := d.Reset(in, 0); err != nil {
				t.Fatal(err)
			}
			if err := d.Decode(0, found); err != nil || at != len(content) {
				t.Fatalf("found %d bytes of %d, %v", at, len(content), err)
			}
		})
		if want := int(pieces(int64(len(content)))); calls != want {
			t.Errorf("%d pieces of %d bytes, want %d", calls, len(content), want)
		}
		return n
	}
	// A few may be for what the collector took, of 48 pieces.
	if one, many := allocs(60<<10), allocs(3<<20); many > one+8 {
		t.Errorf("%v allocations for a span of 3 MiB, %v for one of 60 KiB", many, one)
	}
}
