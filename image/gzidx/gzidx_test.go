// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// memBlob is a Blob over a byte slice.
type memBlob []byte

func (m memBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}
func (m memBlob) Size() int64  { return int64(len(m)) }
func (m memBlob) Close() error { return nil }

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// build returns the content of the gzip file z and its index.
func build(t testing.TB, z []byte, opts gzidx.Options) (content, index []byte) {
	t.Helper()
	r := gzidx.NewReader(bytes.NewReader(z), opts)
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if n, err := r.WriteIndex(&out); err != nil || n != int64(out.Len()) {
		t.Fatalf("WriteIndex: %d bytes of %d, %v", n, out.Len(), err)
	}
	return content, out.Bytes()
}

func open(t testing.TB, src fetcher.Blob, index []byte) *gzidx.Blob {
	t.Helper()
	b, err := gzidx.Open(t.Context(), src, bytes.NewReader(index), int64(len(index)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return b
}

// compare reads b in every way and wants it to be want.
func compare(t testing.TB, b *gzidx.Blob, want []byte, seed uint64) {
	t.Helper()
	if b.Size() != int64(len(want)) {
		t.Fatalf("size is %d, want %d", b.Size(), len(want))
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 10 {
		off := rnd.IntN(len(want) + 1)
		p := make([]byte, rnd.IntN(min(len(want)+1, 3<<20))>>rnd.IntN(20))
		n, err := b.ReadAt(t.Context(), p, int64(off))
		rest := min(len(p), len(want)-off)
		if n != rest || (err == nil) != (n == len(p)) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("read %d bytes at %d: got %d, %v", len(p), off, n, err)
		}
		if !bytes.Equal(p[:n], want[off:off+n]) {
			t.Fatalf("read %d bytes at %d: wrong bytes", len(p), off)
		}
	}
	r, err := b.ReadRange(t.Context(), 0, b.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read all: %d bytes of %d, %v", len(got), len(want), err)
	}
}

// The reference's index of a layer reads it, and ours has the same points.
func TestGolden(t *testing.T) {
	dir, _ := need.Golden(t, "tars/l0.tar*", "turbo/l0.gzip.meta")
	z, want := readFile(t, filepath.Join(dir, "tars/l0.tar.gz")), readFile(t, filepath.Join(dir, "tars/l0.tar"))
	index := readFile(t, filepath.Join(dir, "turbo/l0.gzip.meta"))
	compare(t, open(t, memBlob(z), index), want, 1)
	content, own := build(t, z, gzidx.Options{})
	if !bytes.Equal(content, want) {
		t.Errorf("inflated to %d bytes that are not the tar", len(content))
	}
	compare(t, open(t, memBlob(z), own), want, 2)
	theirs, _ := points(t, index)
	ours, _ := points(t, own)
	for i := range ours {
		ours[i].win, ours[i].winLen = theirs[i].win, theirs[i].winLen
	}
	if !slices.Equal(ours, theirs) {
		t.Errorf("points are\n%+v, the reference's\n%+v", ours, theirs)
	}
}

func TestTiny(t *testing.T) {
	for _, n := range []int{0, 1, 2, 100, 70_000} {
		for level := gzip.HuffmanOnly; level <= 9; level++ {
			want := bytes.Repeat([]byte("ab c"), n)[:n]
			z := gzipped(t, want, level)
			content, index := build(t, z, gzidx.Options{})
			if !bytes.Equal(content, want) {
				t.Errorf("inflated to %d bytes, want %d", len(content), n)
			}
			compare(t, open(t, memBlob(z), index), want, uint64(n))
		}
	}
}
