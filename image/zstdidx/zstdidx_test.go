// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// TestRandomReads: whatever made a stream, reads anywhere in its content return
// what a full decompression does.
func TestRandomReads(t *testing.T) {
	for _, m := range makers() {
		t.Run(m.name, func(t *testing.T) {
			for name, want := range contents() {
				z := m.make(t, want)
				content, index := indexed(t, z, small)
				if !bytes.Equal(content, want) {
					t.Fatalf("%s: read %d bytes, others than the %d compressed", name, len(content), len(want))
				}
				info, err := zstdidx.ReadInfo(bytes.NewReader(index), int64(len(index)))
				if got := (zstdidx.Info{Size: int64(len(want)), CompressedSize: int64(len(z))}); err != nil || info != got {
					t.Errorf("%s: ReadInfo = %+v, %v; want %+v", name, info, err, got)
				}
				readRandomly(t, name, open(t, memBlob(z), index), want)
			}
		})
	}
}

func readRandomly(t *testing.T, name string, b *zstdidx.Blob, want []byte) {
	t.Helper()
	if b.Size() != int64(len(want)) {
		t.Fatalf("%s: size %d, want %d", name, b.Size(), len(want))
	}
	size := int64(len(want))
	for off := int64(0); off < size; { // every span
		start, end := b.Span(off)
		if start != off || end <= off || end-start > small.MaxSpan {
			t.Fatalf("%s: span of byte %d is %d to %d", name, off, start, end)
		}
		off = end
	}
	rnd := rand.New(rand.NewPCG(uint64(size), 1))
	for range 15 {
		if size == 0 {
			break
		}
		off := rnd.Int64N(size)
		n := min(1+rnd.Int64N(1<<uint(1+rnd.IntN(19))), size-off)
		p := make([]byte, n)
		if _, err := b.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, want[off:off+n]) {
			t.Fatalf("%s: %d bytes at %d: %v, or others", name, n, off, err)
		}
	}
	r, err := b.ReadRange(t.Context(), 0, size)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: streamed %d bytes of %d: %v, or others", name, len(got), size, err)
	}
}

func TestBlob(t *testing.T) {
	fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
		z := goStream()(t, content)
		_, index := indexed(t, z, zstdidx.Options{Span: 10_000, MaxSpan: 150_000})
		b, err := zstdidx.Open(t.Context(), memBlob(z), bytes.NewReader(index), int64(len(index)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// TestIndexIsTheSame for the same stream, however it is read.
func TestIndexIsTheSame(t *testing.T) {
	z := goStream()(t, source())
	_, want := indexed(t, z, small)
	r := zstdidx.NewReader(bytes.NewReader(z), small)
	p := make([]byte, 777)
	for {
		if _, err := r.Read(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	var got bytes.Buffer
	if _, err := r.WriteIndex(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("index of %d bytes, %v; want the same %d", got.Len(), err, len(want))
	}
}

func TestWriteIndexTooEarly(t *testing.T) {
	r := zstdidx.NewReader(bytes.NewReader(goStream()(t, source())), small)
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if n, err := r.WriteIndex(&b); n != 0 || err == nil || b.Len() != 0 {
		t.Errorf("WriteIndex = %d, %v, wrote %d; want an error", n, err, b.Len())
	}
}
