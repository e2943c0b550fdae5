// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
)

// fuzzContent is what the gzip file of FuzzOpen holds.
func fuzzContent() []byte {
	p := make([]byte, 0, 400<<10)
	for i := range uint32(60_000) {
		p = binary.BigEndian.AppendUint32(p, i*2654435761>>(i%7))
	}
	return p
}

// classified reports whether err is of a class that Open and reads may fail
// with.
func classified(err error) bool {
	return errors.Is(err, gzidx.ErrCorrupt) || errors.Is(err, gzidx.ErrChanged) || errors.Is(err, errors.ErrUnsupported)
}

// FuzzOpen wants of any index over a gzip file what the file holds, or an
// error. Only an index without checksums can say otherwise, and then but of
// what it says the windows are.
func FuzzOpen(f *testing.F) {
	content := fuzzContent()
	z := gzipped(f, content, 6)
	_, x := build(f, z, gzidx.Options{Span: 64 << 10})
	all, windows := points(f, x)
	f.Add(x)
	f.Add(encode(x, true, all, windows))
	f.Add(encode(x, false, all, windows))
	f.Add(x[:333])
	f.Fuzz(func(t *testing.T, x []byte) {
		sealed := slices.Clone(x)
		reseal(sealed)
		for i, x := range [][]byte{x, x, sealed, sealed} {
			opts := gzidx.OpenOptions{Recent: -(i % 2)} // whole spans are read, and parts
			b, err := gzidx.OpenWith(t.Context(), memBlob(z), bytes.NewReader(x), int64(len(x)), opts)
			if err != nil {
				if b != nil || !classified(err) {
					t.Fatalf("%v, %v of no class", b, err)
				}
				continue
			}
			readHostile(t, b, x, content)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func readHostile(t *testing.T, b *gzidx.Blob, x, content []byte) {
	p := make([]byte, 300<<10)
	for off := int64(0); off < b.Size(); off += b.Size()/5 + 1 {
		start, end := b.Span(off)
		if start > off || end <= off {
			t.Fatalf("span of %d is %d to %d", off, start, end)
		}
		n, err := b.ReadAt(t.Context(), p, off)
		if err != nil && !errors.Is(err, io.EOF) && !classified(err) {
			t.Fatalf("%v of no class", err)
		}
		if string(x[57:65]) == "spansums" && (off+int64(n) > int64(len(content)) || !bytes.Equal(p[:n], content[off:off+int64(n)])) {
			t.Fatalf("%d wrong bytes at %d", n, off)
		}
	}
}

// FuzzReader wants of any gzip file what compress/gzip makes of it, and, if
// that is not an error, an index that reads it.
func FuzzReader(f *testing.F) {
	text := bytes.Repeat([]byte("to be or not to be, that is the question; "), 50)
	one := gzipped(f, text, 6)
	f.Add(one)
	f.Add(append(slices.Clone(one), gzipped(f, make([]byte, 300<<10), 1)...))
	f.Add(append(slices.Clone(one), make([]byte, 100)...))
	f.Add(named(f, text))
	f.Fuzz(func(t *testing.T, z []byte) {
		r := gzidx.NewReader(bytes.NewReader(z), gzidx.Options{Span: 64 << 10})
		got, err := io.ReadAll(io.LimitReader(r, 2<<20))
		if len(got) == 2<<20 {
			return
		}
		if err != nil && !errors.Is(err, gzidx.ErrCorrupt) {
			t.Fatalf("%v of no class", err)
		}
		want, wantErr := stdGunzip(z)
		if err == nil && wantErr != nil {
			t.Fatalf("no error; compress/gzip says %v", wantErr)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes that are not the %d of compress/gzip", len(got), len(want))
		}
		var x bytes.Buffer
		if _, err := r.WriteIndex(&x); err != nil {
			t.Fatal(err)
		}
		compare(t, open(t, memBlob(z), x.Bytes()), want, 1)
	})
}

// stdGunzip is what compress/gzip makes of z, without zeros behind, of which up
// to ten are of the last member.
func stdGunzip(z []byte) (out []byte, err error) {
	least := len(bytes.TrimRight(z, "\x00"))
	for n := min(least+10, len(z)); n >= least; n-- {
		if out, err = stdGunzipAll(z[:n]); err == nil {
			break
		}
	}
	return out, err
}

func stdGunzipAll(z []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(z))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// FuzzRoundTrip wants back what was compressed, of many members.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("abcabc"), uint16(1000), uint8(6))
	f.Add(bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, 99), uint16(3), uint8(1))
	f.Fuzz(func(t *testing.T, seed []byte, times uint16, level uint8) {
		if len(seed) > 4096 {
			return
		}
		var z, want []byte
		for i := range 3 {
			p := bytes.Repeat(seed, int(times)%500*(i+1))
			p = append(p, fuzzContent()[:min(len(p), 100_000)]...)
			want = append(want, p...)
			z = append(z, gzipped(t, p, int(level)%12-2)...)
		}
		got, x := build(t, z, gzidx.Options{Span: 64 << 10})
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes that are not the %d compressed", len(got), len(want))
		}
		compare(t, open(t, memBlob(z), x), want, uint64(times))
	})
}
