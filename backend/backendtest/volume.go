// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
)

// RunVolume holds a volume against the contract, with a byte slice for a
// model. The function mk makes an empty volume of size bytes; the suite closes
// it. SEED=n repeats a run's random operations.
func RunVolume(t *testing.T, mk func(t *testing.T, size int64) backend.Writer) {
	for _, c := range []struct {
		name string
		size int64
		test func(*testing.T, backend.Writer)
	}{
		{"OneSector", 512, volumeRandomOps},
		{"OddSize", 3<<20 + 512, volumeRandomOps},
		{"Edges", 1 << 20, volumeEdges},
		{"Concurrent", 4 << 20, volumeConcurrent},
		{"CloseEndsIO", 1 << 20, volumeClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := mk(t, c.size)
			if got := v.Size(); got != c.size {
				t.Errorf("Size() = %d, want %d", got, c.size)
			}
			c.test(t, v)
		})
	}
}

// volumeRandomOps makes random requests of the volume and of a byte slice.
func volumeRandomOps(t *testing.T, v backend.Writer) {
	rnd := newRand(t)
	model := make([]byte, v.Size())
	for range 400 {
		off, n := sectors(rnd, v.Size(), 256<<10)
		p := make([]byte, n)
		switch rnd.IntN(8) {
		case 0, 1, 2:
			fill(rnd, p)
			mustMove(t, n)(v.WriteAt(t.Context(), p, off))
			copy(model[off:], p)
		case 3:
			must(t, v.Discard(t.Context(), off, int64(n)))
			clear(model[off:][:n])
		case 4:
			must(t, v.Sync(t.Context()))
		default:
			fill(rnd, p)
			mustMove(t, n)(v.ReadAt(t.Context(), p, off))
			mustEqual(t, p, model[off:][:n], off)
		}
	}
	all := make([]byte, v.Size())
	mustMove(t, len(all))(v.ReadAt(t.Context(), all, 0))
	mustEqual(t, all, model, 0)
	must(t, v.Close())
}

// volumeEdges reads and writes the first and last sectors, and nothing.
func volumeEdges(t *testing.T, v backend.Writer) {
	last := v.Size() - backend.SectorSize
	for _, off := range []int64{0, last} {
		p := bytes.Repeat([]byte{byte(off>>9) | 1}, backend.SectorSize)
		mustMove(t, len(p))(v.WriteAt(t.Context(), p, off))
		got := make([]byte, len(p))
		mustMove(t, len(got))(v.ReadAt(t.Context(), got, off))
		mustEqual(t, got, p, off)
	}
	for _, off := range []int64{0, v.Size()} {
		mustMove(t, 0)(v.WriteAt(t.Context(), nil, off))
		mustMove(t, 0)(v.ReadAt(t.Context(), nil, off))
		must(t, v.Discard(t.Context(), off, 0))
	}
	must(t, v.Close())
}

// volumeConcurrent writes and reads disjoint stripes at the same time; run it
// with the race detector.
func volumeConcurrent(t *testing.T, v backend.Writer) {
	const workers = 8
	stripe := v.Size() / workers
	var wg sync.WaitGroup
	for w := range int64(workers) {
		wg.Go(func() {
			want, got := make([]byte, 16<<10), make([]byte, 16<<10)
			for i := range int64(20) {
				off := w*stripe + i*int64(len(want))
				fill(rand.New(rand.NewPCG(uint64(w), uint64(i))), want)
				if err := writeRead(t.Context(), v, want, got, off); err != nil {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
	must(t, v.Close())
}

func writeRead(ctx context.Context, v backend.Writer, want, got []byte, off int64) error {
	if _, err := v.WriteAt(ctx, want, off); err != nil {
		return err
	}
	if err := v.Sync(ctx); err != nil {
		return err
	}
	if n, err := v.ReadAt(ctx, got, off); n < len(got) {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("read back something else")
	}
	return nil
}

// volumeClose asks that a closed volume answers with errors, not with zeroes.
func volumeClose(t *testing.T, v backend.Writer) {
	must(t, v.Close())
	p := make([]byte, backend.SectorSize)
	if n, err := v.ReadAt(t.Context(), p, 0); err == nil || n == len(p) {
		t.Errorf("ReadAt after Close = %d, %v, want an error", n, err)
	}
	if _, err := v.WriteAt(t.Context(), p, 0); err == nil {
		t.Error("WriteAt after Close succeeded")
	}
}

// newRand returns a source of randomness that SEED makes repeatable.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// sectors returns a random range of whole sectors, of up to most bytes, inside
// size.
func sectors(rnd *rand.Rand, size, most int64) (off int64, n int) {
	off = rnd.Int64N(size/backend.SectorSize) * backend.SectorSize
	left := min(most, size-off) / backend.SectorSize
	return off, int(1+rnd.Int64N(left)) * backend.SectorSize
}

// fill makes p pseudo-random; a seed per call is cheaper than a call per word.
func fill(rnd *rand.Rand, p []byte) {
	var key [32]byte
	for i := range key {
		key[i] = byte(rnd.Uint32())
	}
	_, _ = rand.NewChaCha8(key).Read(p) // cannot fail
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustMove returns a check of what a read or write of want bytes returned.
func mustMove(t testing.TB, want int) func(n int, err error) {
	t.Helper()
	return func(n int, err error) {
		t.Helper()
		if n != want || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("moved %d of %d bytes: %v", n, want, err)
		}
	}
}

func mustEqual(t testing.TB, got, want []byte, off int64) {
	t.Helper()
	if err := difference(got, want, off); err != nil {
		t.Fatal(err)
	}
}

// difference says where got, read at off, differs from want.
func difference(got, want []byte, off int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			return fmt.Errorf("read of %d bytes at %d is wrong from byte %d on", len(want), off, off+int64(i))
		}
	}
	return fmt.Errorf("read of %d bytes at %d returned %d", len(want), off, len(got))
}
