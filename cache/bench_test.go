// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// hitBlob returns a blob all of which is on disk, and a plain file of the same
// content.
func hitBlob(tb testing.TB, size int64) (*cache.Blob, *os.File) {
	tb.Helper()
	return hitBlobOf(tb, newSource(content(size)))
}

func hitBlobOf(tb testing.TB, src fetcher.Blob) (*cache.Blob, *os.File) {
	tb.Helper()
	b := openBlob(tb, openCache(tb, cache.Options{}), "x", src)
	if err := b.Prefetch(tb.Context(), 0, src.Size()); err != nil {
		tb.Fatal(err)
	}
	data := make([]byte, src.Size())
	if _, err := src.ReadAt(tb.Context(), data, 0); err != nil {
		tb.Fatal(err)
	}
	name := filepath.Join(tb.TempDir(), "plain")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	return b, f
}

func TestHitsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	b, _ := hitBlob(t, 4<<20)
	ctx, p := t.Context(), make([]byte, 4096)
	off := int64(0)
	if n := testing.AllocsPerRun(100, func() {
		off = (off + 12345) % (4<<20 - 4096)
		if _, err := b.ReadAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per hit, want 0", n)
	}
}

const benchSize = 64 << 20

// BenchmarkReadHit4K: what does a hit cost over pread of a plain file?
func BenchmarkReadHit4K(b *testing.B) {
	b.Run("blocks", func(b *testing.B) { benchmarkHits(b, newSource(content(benchSize))) })
	b.Run("spans", func(b *testing.B) { benchmarkHits(b, spanned{newSource(content(benchSize)), 1<<20 + 777}) })
}

func benchmarkHits(b *testing.B, src fetcher.Blob) {
	b.Helper()
	blob, plain := hitBlobOf(b, src)
	ctx, p := b.Context(), make([]byte, 4096)
	r := rand.New(rand.NewPCG(1, 1))
	var hit, base time.Duration
	const batch = 64
	b.SetBytes(2 * batch * 4096)
	b.ReportAllocs()
	// The two take turns in batches, so that noise falls on both.
	for b.Loop() {
		off := r.Int64N(benchSize/4096-batch) * 4096
		start := time.Now()
		for i := range int64(batch) {
			if _, err := blob.ReadAt(ctx, p, off+i*4096); err != nil {
				b.Fatal(err)
			}
		}
		middle := time.Now()
		for i := range int64(batch) {
			if _, err := plain.ReadAt(p, off+i*4096); err != nil {
				b.Fatal(err)
			}
		}
		hit += middle.Sub(start)
		base += time.Since(middle)
	}
	b.ReportMetric(float64(hit)/float64(base), "x-of-pread")
	b.ReportMetric(float64(hit.Nanoseconds())/float64(b.N)/batch, "ns/hit")
}

// BenchmarkReadHit4KParallel: do hits of one blob stand in each other's way?
func BenchmarkReadHit4KParallel(b *testing.B) {
	blob, plain := hitBlob(b, benchSize)
	for _, c := range []struct {
		name string
		read func(p []byte, off int64) (int, error)
	}{
		{"cache", func(p []byte, off int64) (int, error) { return blob.ReadAt(context.Background(), p, off) }},
		{"pread", plain.ReadAt},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(4096)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, 4096)
				r := rand.New(rand.NewPCG(rand.Uint64(), 1))
				for pb.Next() {
					if _, err := c.read(p, r.Int64N(benchSize/4096)*4096); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// A slowSource has a round trip before each request, and a line that its
// requests share.
type slowSource struct {
	*source
	rtt  time.Duration
	rate int64 // bytes a second

	line sync.Mutex // guards free
	free time.Time  // when the line has sent all it was given
}

func (s *slowSource) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	select {
	case <-time.After(s.rtt):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := s.source.ReadRange(ctx, off, n)
	return slowReader{r, s}, err
}

type slowReader struct {
	io.ReadCloser
	s *slowSource
}

func (r slowReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p[:min(len(p), 64<<10)])
	// Timers are late by a millisecond or more: the line makes up for it.
	const late = 5 * time.Millisecond
	r.s.line.Lock()
	if least := time.Now().Add(-late); r.s.free.Before(least) {
		r.s.free = least
	}
	r.s.free = r.s.free.Add(time.Duration(int64(n) * int64(time.Second) / r.s.rate))
	wait := time.Until(r.s.free)
	r.s.line.Unlock()
	if wait > 0 {
		<-time.After(wait)
	}
	return n, err
}

// BenchmarkColdSeq: how near does a reader in order come to one request for
// everything, straight from the source?
func BenchmarkColdSeq(b *testing.B) {
	const size, rtt, rate = 32 << 20, 20 * time.Millisecond, 100 << 20
	data := content(size)
	for _, c := range []struct {
		name string
		read func(blob *cache.Blob) error
	}{
		{"ReadAt64K", func(blob *cache.Blob) error {
			p := make([]byte, 64<<10)
			for off := int64(0); off < size; off += int64(len(p)) {
				if _, err := blob.ReadAt(b.Context(), p, off); err != nil {
					return err
				}
			}
			return nil
		}},
		{"ReadRange", func(blob *cache.Blob) error { return readAll(b.Context(), blob, size) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(2 * size)
			b.ReportAllocs()
			var requests int64
			var cached, direct time.Duration
			for b.Loop() {
				src := &slowSource{source: newSource(data), rtt: rtt, rate: rate}
				start := time.Now()
				if err := readAll(b.Context(), src, size); err != nil {
					b.Fatal(err)
				}
				direct += time.Since(start)
				blob := openBlob(b, openCache(b, cache.Options{}), "x", src)
				start = time.Now()
				if err := c.read(blob); err != nil {
					b.Fatal(err)
				}
				cached += time.Since(start)
				requests += blob.Stats().Fetches
			}
			b.ReportMetric(float64(cached)/float64(direct), "x-of-direct")
			b.ReportMetric(float64(requests)/float64(b.N), "requests")
		})
	}
}

func readAll(ctx context.Context, b fetcher.Blob, size int64) error {
	r, err := fetcher.ReadRange(ctx, b, 0, size)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return err
}
