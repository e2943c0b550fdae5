// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// spanned is a source that makes spans of one size.
type spanned struct {
	*source
	span int64
}

func (spanned) Parts() bool { return true }

func (s spanned) Span(off int64) (start, end int64) {
	start = off - off%s.span
	return start, min(start+s.span, s.Size())
}

// An inflater is a source that makes spans, each as a whole, and counts the bytes
// it makes.
type inflater struct {
	*source
	edges []int64 // of spans, from 0 to the size

	mu   sync.Mutex
	made int64
}

// newInflater returns a source whose spans are of any length up to longest.
func newInflater(data []byte, longest int64, rng *rand.Rand) *inflater {
	f := &inflater{source: newSource(data), edges: []int64{0}}
	for end := int64(0); end < f.Size(); {
		end = min(end+1+rng.Int64N(longest), f.Size())
		f.edges = append(f.edges, end)
	}
	return f
}

func (*inflater) Parts() bool { return true }

func (f *inflater) Span(off int64) (start, end int64) {
	i, exact := slices.BinarySearch(f.edges, off)
	if !exact {
		i--
	}
	return f.edges[i], f.edges[i+1]
}

func (f *inflater) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	start, _ := f.Span(off)
	_, end := f.Span(off + n - 1)
	f.mu.Lock()
	f.made += end - start
	f.mu.Unlock()
	return f.source.ReadRange(ctx, off, n)
}

// TestSpans reads, asks for and expects ranges of sources with spans of all
// kinds, and gets the right bytes.
func TestSpans(t *testing.T) {
	data := content(5<<20 + 12345)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := openCache(t, cache.Options{ExtentSize: 64 << 10, MaxExtent: 1 << 20})
		src := newInflater(data, 1<<(8+rng.IntN(14)), rng)
		b := openBlob(t, c, "x", src)
		var wg sync.WaitGroup
		for range 4 {
			ops := rand.New(rand.NewPCG(rng.Uint64(), 2))
			wg.Go(func() {
				for range 30 {
					off := ops.Int64N(int64(len(data)))
					n := 1 + ops.Int64N(min(int64(len(data))-off, 1<<(4+ops.IntN(17))))
					switch ops.IntN(6) {
					case 0:
						if err := b.Ask(t.Context(), off, n); err != nil {
							t.Error(err)
						}
					case 1:
						if err := b.Expect(t.Context(), off, n); err != nil {
							t.Error(err)
						}
					default:
						wantBytes(t, b, data, off, n)
					}
				}
			})
		}
		wg.Wait()
		wantBytes(t, b, data, 0, int64(len(data)))
	}
}

// TestSpansAreMadeOnce by whoever reads on, and twice at most where reads jump:
// once to where the first ends, and once for all others.
func TestSpansAreMadeOnce(t *testing.T) {
	const size, span = 32<<20 + 777, 1 << 20
	data := content(size)
	read := map[string]func(b *cache.Blob){
		"in order": func(b *cache.Blob) {
			for off := int64(0); off < size; off += 128 << 10 {
				wantBytes(t, b, data, off, min(128<<10, size-off))
			}
		},
		"at random": func(b *cache.Blob) {
			rng := rand.New(rand.NewPCG(1, 1))
			for _, i := range rng.Perm(size / 4096) {
				wantBytes(t, b, data, int64(i)*4096, 4096)
			}
			wantBytes(t, b, data, size-10000, 10000)
		},
		"as a stream": func(b *cache.Blob) {
			r, err := fetcher.ReadRange(t.Context(), b, 0, size)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
		},
		"by expecting it": func(b *cache.Blob) {
			for off := int64(0); off < size; off += 3 << 20 {
				if err := b.Expect(t.Context(), off, 3<<20); err != nil {
					t.Error(err)
				}
			}
		},
	}
	for name, read := range read {
		t.Run(name, func(t *testing.T) {
			c := openCache(t, cache.Options{})
			src := newInflater(data, 2*span, rand.New(rand.NewPCG(5, 5)))
			b := openBlob(t, c, "x", src)
			read(b)
			c.Quiesce()
			t.Logf("made %.3f times, by %d requests", float64(src.made)/size, len(src.asked()))
			times := 1.2
			if name == "at random" || name == "by expecting it" {
				times = 2
			}
			if got := float64(src.made) / size; got > times {
				t.Errorf("a blob was made %.3f times, want %.1f at most", got, times)
			}
		})
	}
}

// A liar is a source whose spans make no sense.
type liar struct {
	*source
	start, end int64
}

func (liar) Parts() bool { return false }

func (l liar) Span(off int64) (start, end int64) { return off + l.start, off + l.end }

func TestSpansThatMakeNoSense(t *testing.T) {
	c := openCache(t, cache.Options{})
	for _, s := range []span{{0, 0}, {0, -1}, {1, 2}, {-1, 1000}, {0, 5000}, {0, 1 << 62}} {
		if b, err := c.Blob(dgst("x"), liar{newSource(content(4099)), s.off, s.end}); err == nil {
			t.Errorf("a source of spans %v opens", s)
			_ = b.Close()
		}
	}
}

// TestSpansLast: what is on disk of spans is there after a restart, and goes
// where others need the room.
func TestSpansLast(t *testing.T) {
	const size = 8 << 20
	dir, data := t.TempDir(), content(size)
	src := func() *inflater { return newInflater(data, 1<<20, rand.New(rand.NewPCG(8, 8))) }
	c := openCache(t, cache.Options{Dir: dir})
	wantBytes(t, openBlob(t, c, "x", src()), data, 0, size)
	c.Quiesce()
	closeCache(t, c)

	again := src()
	c = openCache(t, cache.Options{Dir: dir})
	b := openBlob(t, c, "x", again)
	rng := rand.New(rand.NewPCG(2, 2))
	for range 500 {
		off := rng.Int64N(size)
		wantBytes(t, b, data, off, rng.Int64N(min(size-off, 100<<10)))
	}
	if again.made > 0 {
		t.Errorf("%d bytes were made again", again.made)
	}
	closeCache(t, c)

	c = openCache(t, cache.Options{Dir: dir, Size: 3 << 20})
	b = openBlob(t, c, "x", src())
	for range 500 {
		off := rng.Int64N(size)
		wantBytes(t, b, data, off, rng.Int64N(min(size-off, 100<<10)))
	}
	c.Quiesce()
	if s := c.Stats(); s.EvictedBytes == 0 || s.CorruptBlocks > 0 {
		t.Errorf("got %+v", s)
	}
}

func TestHitsInSpansDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const size = 4 << 20
	src := newInflater(content(size), 1<<20, rand.New(rand.NewPCG(4, 4)))
	b := openBlob(t, openCache(t, cache.Options{}), "x", src)
	if err := b.Prefetch(t.Context(), 0, size); err != nil {
		t.Fatal(err)
	}
	ctx, p := t.Context(), make([]byte, 4096)
	off := int64(0)
	if n := testing.AllocsPerRun(100, func() {
		off = (off + 12345) % (size - 4096)
		if _, err := b.ReadAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per hit, want 0", n)
	}
}
