// SPDX-License-Identifier: Apache-2.0

package zfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// mixed returns n bytes, half of which compress.
func mixed(n int) []byte {
	rnd := rand.NewChaCha8([32]byte{1})
	p := make([]byte, n)
	for off := 0; off < n; off += 8192 {
		_, _ = rnd.Read(p[off:min(off+3000, n)])
		copy(p[min(off+3000, n):], fmt.Sprintf("%d is the offset, all else is zero", off))
	}
	return p
}

// cachedBlob is a Blob with a copy of its source that Drop renews.
type cachedBlob struct {
	memBlob // the copy

	mu      sync.Mutex
	source  []byte
	dropped [][2]int64
	dropErr error
}

func (c *cachedBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memBlob.ReadAt(ctx, p, off)
}

func (c *cachedBlob) Drop(_ context.Context, off, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped = append(c.dropped, [2]int64{off, n})
	copy(c.memBlob[off:off+n], c.source[off:off+n])
	return c.dropErr
}

var algorithms = []zfile.Algorithm{zfile.LZ4, zfile.Zstd}

func TestReadAnyRange(t *testing.T) {
	raw := mixed(3<<20 + 12345)
	for _, a := range algorithms {
		for _, bs := range []int{4 << 10, 32 << 10} {
			t.Run(fmt.Sprint(a, bs), func(t *testing.T) {
				r := open(t, memBlob(compress(t, raw, zfile.Options{Algorithm: a, BlockSize: bs})))
				rnd := rand.New(rand.NewPCG(1, uint64(bs)))
				for range 300 {
					off := rnd.IntN(len(raw))
					n := rnd.IntN(min(1<<rnd.IntN(22), len(raw)-off)) + 1
					p := make([]byte, n)
					if got, err := r.ReadAt(t.Context(), p, int64(off)); err != nil || got != n || !bytes.Equal(p, raw[off:off+n]) {
						t.Fatalf("ReadAt(%d bytes, %d) = %d, %v, or other bytes", n, off, got, err)
					}
				}
			})
		}
	}
}

func TestReadConcurrently(t *testing.T) {
	raw := mixed(2 << 20)
	for _, a := range algorithms {
		r := open(t, memBlob(compress(t, raw, zfile.Options{Algorithm: a})))
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				p := make([]byte, 100_000)
				for off := i * 1000; off+len(p) <= len(raw); off += len(p) {
					if _, err := r.ReadAt(t.Context(), p, int64(off)); err != nil || !bytes.Equal(p, raw[off:off+len(p)]) {
						t.Errorf("%s: read at %d: %v, or other bytes", a, off, err)
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestReadAtEdges(t *testing.T) {
	r := open(t, memBlob(compress(t, mixed(5000), zfile.Options{})))
	if n, err := r.ReadAt(t.Context(), nil, 5000); n != 0 || err != nil {
		t.Errorf("empty read at the end: %d, %v", n, err)
	}
	if n, err := r.ReadAt(t.Context(), make([]byte, 1), -1); n != 0 || err == nil {
		t.Errorf("read at -1: %d, %v", n, err)
	}
	if n, err := r.ReadAt(t.Context(), make([]byte, 1), 1<<62); n != 0 || err == nil {
		t.Errorf("read far past the end: %d, %v", n, err)
	}
}

// A read costs one request to the source, however many blocks it spans.
func TestReadIsOneRequest(t *testing.T) {
	src := &countingBlob{memBlob: compress(t, mixed(1<<20), zfile.Options{})}
	r := open(t, src)
	src.reads = 0
	if _, err := r.ReadAt(t.Context(), make([]byte, 1<<20), 0); err != nil || src.reads != 1 {
		t.Errorf("%d requests, %v; want 1", src.reads, err)
	}
}

// countingBlob counts reads and fails them once closed.
type countingBlob struct {
	memBlob
	reads  int
	closed bool
}

func (c *countingBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.reads++
	if c.closed {
		return 0, fs.ErrClosed
	}
	return c.memBlob.ReadAt(ctx, p, off)
}

func (c *countingBlob) Close() error { c.closed = true; return nil }

func TestCloseClosesTheSource(t *testing.T) {
	r := open(t, &countingBlob{memBlob: compress(t, mixed(5000), zfile.Options{})})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after Close: %v, want fs.ErrClosed", err)
	}
}

// Each part of a file is damaged in the cache only: one Drop must heal it.
func TestDropHeals(t *testing.T) {
	raw := mixed(100_000)
	for _, a := range algorithms {
		source := compress(t, raw, zfile.Options{Algorithm: a})
		for name, off := range map[string]int{
			"magic": 0, "header": 100, "first block": 600, "a block": 20_000,
			"index": len(source) - 520, "trailer magic": len(source) - 512, "trailer": len(source) - 1,
		} {
			t.Run(fmt.Sprint(a, " ", name), func(t *testing.T) {
				src := &cachedBlob{memBlob: bytes.Clone(source), source: source}
				src.memBlob[off] ^= 0x10
				r := open(t, src)
				if got := readAll(t, r); !bytes.Equal(got, raw) {
					t.Error("other bytes")
				}
				if len(src.dropped) != 1 || src.dropped[0][0] > int64(off) || src.dropped[0][0]+src.dropped[0][1] <= int64(off) {
					t.Errorf("dropped %v, want one range around %d", src.dropped, off)
				}
			})
		}
	}
}

// Where the source itself is damaged the reader gives up after one Drop and
// says which block it was.
func TestCorruptBlockIsNamed(t *testing.T) {
	for _, a := range algorithms {
		for _, nocrc := range []bool{false, true} {
			t.Run(fmt.Sprint(a, " without CRC ", nocrc), func(t *testing.T) {
				z := compress(t, bytes.Repeat([]byte("0123456789abcdef"), 1024), zfile.Options{Algorithm: a, NoChecksum: nocrc})
				r := open(t, memBlob(z))
				off := 512 + int(r.Info().CompressedSize/r.Info().Blocks) // of block 1: all are alike
				for i := range 8 {
					z[off+i] = 0xFF
				}
				src := &cachedBlob{memBlob: z, source: z}
				r = open(t, src)
				p := make([]byte, r.Size())
				n, err := r.ReadAt(t.Context(), p, 0)
				if !errors.Is(err, zfile.ErrCorrupt) || !strings.Contains(err.Error(), "block 1") || !strings.Contains(err.Error(), fmt.Sprintf("at byte %d:", off)) {
					t.Errorf("got %v, want ErrCorrupt with block and offset", err)
				}
				if n != 4096 || len(src.dropped) != 1 {
					t.Errorf("%d good bytes, want 4096; %d drops, want 1", n, len(src.dropped))
				}
				if n, err := r.ReadAt(t.Context(), p[:4096], 8192); n != 4096 || err != nil {
					t.Errorf("the block after: %d, %v", n, err)
				}
			})
		}
	}
}

func TestFailingDropIsReported(t *testing.T) {
	z := compress(t, mixed(10_000), zfile.Options{})
	src := &cachedBlob{memBlob: bytes.Clone(z), source: z, dropErr: errors.New("cache disk is read-only")}
	src.memBlob[600] ^= 1
	_, err := open(t, src).ReadAt(t.Context(), make([]byte, 4096), 0)
	if !errors.Is(err, zfile.ErrCorrupt) || !errors.Is(err, src.dropErr) {
		t.Errorf("got %v, want ErrCorrupt and the error of Drop", err)
	}
}

func TestDropMapsToCompressedBytes(t *testing.T) {
	z := compress(t, mixed(40_960), zfile.Options{})
	src := &cachedBlob{memBlob: bytes.Clone(z), source: z}
	r := open(t, src)
	for _, rng := range [][2]int64{{0, 1 << 40}, {5000, 1}, {40_960, 10}, {0, 0}, {8192, math.MaxInt64}} {
		if err := r.Drop(t.Context(), rng[0], rng[1]); err != nil {
			t.Fatal(err)
		}
	}
	if len(src.dropped) != 3 || src.dropped[0] != [2]int64{512, r.Info().CompressedSize} {
		t.Fatalf("dropped %v, want all blocks, then one, then the rest", src.dropped)
	}
	one := src.dropped[1]
	for i := range one[1] {
		src.memBlob[one[0]+i] = 0
	}
	p := make([]byte, 4096)
	if _, err := r.ReadAt(t.Context(), p, 0); err != nil || len(src.dropped) != 3 {
		t.Errorf("block 0 lay in the range of block 1: %v", err)
	}
	if _, err := r.ReadAt(t.Context(), p, 4096); err != nil || len(src.dropped) != 4 {
		t.Errorf("block 1 lay outside of its range: %v", err)
	}
	if err := fetcher.Drop(t.Context(), open(t, memBlob(z)), 0, 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Drop without a cache: %v, want errors.ErrUnsupported", err)
	}
}

func TestInfoAndVerify(t *testing.T) {
	z := compress(t, make([]byte, 3<<20), zfile.Options{Algorithm: zfile.Zstd, BlockSize: 16 << 10})
	r := open(t, memBlob(z))
	want := zfile.Info{
		Algorithm: zfile.Zstd, BlockSize: 16 << 10, Blocks: 192, Size: 3 << 20,
		CompressedSize: int64(len(z) - 1024 - 192*4), Checksums: true, Digests: true,
	}
	if got := r.Info(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var last int64
	err := r.Verify(t.Context(), func(done, total int64) {
		if done <= last || total != r.Size() {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	if err != nil || last != r.Size() {
		t.Errorf("verified %d bytes, %v", last, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(t, ctxBlob{memBlob(z)}).Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// ctxBlob heeds its context.
type ctxBlob struct{ memBlob }

func (c ctxBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return c.memBlob.ReadAt(ctx, p, off)
}

func TestReadHitDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops buffers at random under the race detector")
	}
	for _, a := range algorithms {
		r := open(t, memBlob(compress(t, mixed(1<<20), zfile.Options{Algorithm: a})))
		p := make([]byte, 4096)
		off := int64(0)
		for name, shift := range map[string]int64{"aligned": 0, "across blocks": 512} {
			n := testing.AllocsPerRun(1000, func() {
				if _, err := r.ReadAt(t.Context(), p, off+shift); err != nil {
					t.Fatal(err)
				}
				off = (off + 4096) & (1<<19 - 1)
			})
			if n != 0 {
				t.Errorf("%s, %s: %v allocations per read of 4 KiB", a, name, n)
			}
		}
	}
}
