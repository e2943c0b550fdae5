// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

var modelSeed = flag.Uint64("model.seed", 0, "seed of TestModel; 0 draws one")

// TestModel has many goroutines do random things to two blobs, over a cache
// too small for them, a source that fails at times, and restarts; the model is
// a byte slice per blob.
func TestModel(t *testing.T) {
	noGoroutines(t)
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	m := model{"x": content(3<<20 + 17), "y": content(1 << 20)[5:]}
	var hits int64
	for range 6 {
		c, err := cache.Open(modelOptions(dir, r))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 6 {
			worker := rand.New(rand.NewPCG(r.Uint64(), 1))
			wg.Go(func() { m.work(t, c, worker) })
		}
		if r.IntN(3) == 0 {
			closeCache(t, c) // under the workers' feet
		}
		wg.Wait()
		hits += c.Stats().Hits
		closeCache(t, c)
	}
	if hits == 0 {
		t.Error("no read was a hit")
	}
}

func modelOptions(dir string, r *rand.Rand) cache.Options {
	return cache.Options{
		Dir:              dir,
		MinFree:          -1,
		Size:             int64(1+r.IntN(6)) << 20,
		BlockSize:        4096, // one for all rounds, or nothing would survive
		ExtentSize:       4096 << r.IntN(4),
		MaxExtent:        64 << 10 << r.IntN(3),
		MaxInflightBytes: 1 << 20,
	}
}

// A model is the true content of blobs by name.
type model map[string][]byte

// work opens, uses and closes blobs, until it has done enough or the cache was
// closed.
func (m model) work(t *testing.T, c *cache.Cache, r *rand.Rand) {
	for range 4 {
		name := []string{"x", "y"}[r.IntN(2)]
		src := newSource(m[name])
		src.piece = 4096 << r.IntN(5)
		flaky := rand.New(rand.NewPCG(r.Uint64(), 2))
		var mu sync.Mutex
		src.serve = func(context.Context, int64, int64) error {
			mu.Lock()
			defer mu.Unlock()
			if flaky.IntN(200) == 0 {
				return fetcher.ErrTemporary
			}
			return nil
		}
		b, err := c.Blob(dgst(name), src)
		if errors.Is(err, fs.ErrClosed) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		for range 40 {
			if err := m.step(t, b, m[name], r); err != nil && !forgivable(err) {
				t.Error(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// forgivable reports whether err comes from what the test itself does. Room is
// what only a Prefetch needs: reads go on without the cache.
func forgivable(err error) bool {
	return errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, fs.ErrClosed) || errors.Is(err, context.Canceled)
}

func (m model) step(t *testing.T, b *cache.Blob, data []byte, r *rand.Rand) error {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	off := r.Int64N(int64(len(data)))
	n := 1 + r.Int64N(min(int64(len(data))-off, 1<<r.IntN(20)))
	if r.IntN(10) == 0 {
		go cancel()
	}
	switch r.IntN(12) {
	case 0:
		return b.Drop(ctx, off, n)
	case 1:
		if err := b.Prefetch(ctx, off, n); !errors.Is(err, cache.ErrNoRoom) {
			return err
		}
		return nil
	case 2:
		return m.stream(ctx, t, b, data, off, n)
	}
	p, read := make([]byte, n), b.ReadAt
	if r.IntN(8) == 0 {
		read = b.ReadOnce
	}
	k, err := read(ctx, p, off)
	if !bytes.Equal(p[:k], data[off:off+int64(k)]) {
		t.Errorf("read %d bytes at %d: wrong from byte %d on", n, off, mismatch(p[:k], data[off:]))
	}
	if err == nil && int64(k) < n {
		t.Errorf("read %d of %d bytes at %d without an error", k, n, off)
	}
	return err
}

func (m model) stream(ctx context.Context, t *testing.T, b *cache.Blob, data []byte, off, n int64) error {
	rd, err := b.ReadRange(ctx, off, n)
	if err != nil {
		return err
	}
	defer rd.Close()
	p, err := io.ReadAll(rd)
	if !bytes.Equal(p, data[off:off+int64(len(p))]) {
		t.Errorf("stream %d bytes at %d: wrong from byte %d on", n, off, mismatch(p, data[off:]))
	}
	return err
}
