// SPDX-License-Identifier: Apache-2.0

package zfile_test

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// TestReadNextInBlock: pieces of a block are read from the source together.
func TestReadNextInBlock(t *testing.T) {
	raw := mixed(1 << 20)
	src := &countingBlob{memBlob: compress(t, raw, zfile.Options{BlockSize: 16 << 10})}
	r := open(t, src)
	src.reads = 0
	for _, step := range []struct{ off, n, want int }{
		{0, 4096, 1},
		{4096, 4096, 1},
		{16000, 384, 1},
		{12288, 8192, 2}, // and a part of the next
		{16384, 16384, 3},
		{20480, 100, 3},
		{0, 32768, 4},
	} {
		p := make([]byte, step.n)
		if _, err := r.ReadAt(t.Context(), p, int64(step.off)); err != nil || !bytes.Equal(p, raw[step.off:step.off+step.n]) {
			t.Fatalf("read of %d bytes at %d: %v, or other bytes", step.n, step.off, err)
		}
		if src.reads != step.want {
			t.Errorf("%d requests after that of %d bytes at %d, want %d", src.reads, step.n, step.off, step.want)
		}
	}
}

// TestDropForgetsRecent: who drops bytes wants them from the source.
func TestDropForgetsRecent(t *testing.T) {
	src := &countingBlob{memBlob: compress(t, mixed(1<<20), zfile.Options{})}
	r := open(t, src)
	src.reads = 0
	for range 2 {
		if _, err := r.ReadAt(t.Context(), make([]byte, 100), 0); err != nil {
			t.Fatal(err)
		}
		_ = r.Drop(t.Context(), 0, 100) // the source cannot
	}
	if src.reads != 2 {
		t.Errorf("%d requests, want 2", src.reads)
	}
}

// TestRecentOfManyReaders: blocks of several readers take each other's places,
// and never stand in for one another.
func TestRecentOfManyReaders(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		raw := mixed(4 << 20)
		for j := range raw {
			raw[j] += byte(i)
		}
		r := open(t, memBlob(compress(t, raw, zfile.Options{BlockSize: 16 << 10})))
		for seed := range 2 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), uint64(seed)))
				p := make([]byte, 3000)
				for range 1000 {
					off := rnd.IntN(len(raw) - len(p))
					if _, err := r.ReadAt(t.Context(), p, int64(off)); err != nil || !bytes.Equal(p, raw[off:off+len(p)]) {
						t.Errorf("reader %d at %d: %v, or other bytes", i, off, err)
					}
				}
			})
		}
	}
	wg.Wait()
}
