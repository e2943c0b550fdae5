// SPDX-License-Identifier: Apache-2.0

package spans_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/spans"
)

// waiting returns a Blob whose source waits.
func waiting(t *testing.T, recent int) (b *spans.Blob, content []byte, src *source) {
	t.Helper()
	content = fetchertest.Content(200_000, 1)
	b, _, src = opened(t, content, 0, recent)
	src.gate = make(chan struct{})
	return b, content, src
}

// begin begins to read n bytes at off, and returns how that ends.
func begin(ctx context.Context, b *spans.Blob, content []byte, off, n int64) chan error {
	done := make(chan error, 1)
	go func() {
		p := make([]byte, n)
		_, err := b.ReadAt(ctx, p, off)
		if err == nil && !bytes.Equal(p, content[off:off+n]) {
			err = errors.New("wrong bytes")
		}
		done <- err
	}()
	synctest.Wait()
	return done
}

// ends wants a read to end with an error of class want.
func ends(t *testing.T, done chan error, want error) {
	t.Helper()
	if err := <-done; !errors.Is(err, want) {
		t.Errorf("a read ended with %v, want %v", err, want)
	}
}

func TestReadersShareASpan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := waiting(t, -1)
		var all []chan error
		for i := range 20 {
			all = append(all, begin(t.Context(), b, content, 5*length+int64(i)*100, 10))
		}
		close(src.gate)
		for _, done := range all {
			ends(t, done, nil)
		}
		if len(src.reads) != 1 {
			t.Errorf("source was read %d times", len(src.reads))
		}
	})
}

// One reader's end is not the others', and that of the last ends the read.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := waiting(t, -1)
		first, cancelFirst := context.WithCancel(t.Context())
		one := begin(first, b, content, 0, 10)
		two := begin(t.Context(), b, content, 1000, 10)
		cancelFirst()
		ends(t, one, context.Canceled)
		synctest.Wait()
		if src.given != 0 {
			t.Error("the read was given up while another waited for it")
		}
		ctx, cancel := context.WithCancel(t.Context())
		alone := begin(ctx, b, content, 7*length, 10)
		cancel()
		ends(t, alone, context.Canceled)
		synctest.Wait()
		if src.given != 1 {
			t.Error("the read goes on, and nobody waits for it")
		}
		again := begin(t.Context(), b, content, 7*length, 10) // is none the worse
		close(src.gate)
		ends(t, two, nil)
		ends(t, again, nil)
	})
}

func TestCloseEndsReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails for goroutines that are left
		b, content, src := waiting(t, 1<<20)
		done := begin(t.Context(), b, content, 0, 10)
		if err := b.Close(); err != nil || !src.closed || src.given != 1 {
			t.Errorf("Close: %v, closed the source: %v", err, src.closed)
		}
		ends(t, done, fs.ErrClosed)
		if !errors.Is(b.Close(), fs.ErrClosed) {
			t.Error("it can be closed twice")
		}
	})
}

// Who reads after Drop does not get what was asked for before, then or later.
func TestDropWhileReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := waiting(t, 1<<20)
		one := begin(t.Context(), b, content, 0, 10)
		if err := b.Drop(t.Context(), 0, 1); err != nil {
			t.Fatal(err)
		}
		close(src.gate)
		ends(t, one, nil)
		want(t, b, content, 0, 10)
		want(t, b, content, 0, 10)
		if len(src.reads) != 2 {
			t.Errorf("source was read %d times, want 2", len(src.reads))
		}
	})
}

// As much may be decoded at once as memory allows: many short spans, and few
// long ones.
func TestWorkIsBounded(t *testing.T) {
	for size, most := range map[int64]int{1000: 32, 16 << 20: 8, 64 << 20: 2} {
		synctest.Test(t, func(t *testing.T) {
			x := &table{length: size, size: 50 * size, from: make([]int64, 50)}
			src := &source{gate: make(chan struct{})}
			b := open(t, src, x, 0)
			ctx, cancel := context.WithCancel(t.Context())
			var all []chan error
			for i := range 50 {
				all = append(all, begin(ctx, b, nil, int64(i)*size, 10))
			}
			if len(src.reads) != most {
				t.Errorf("%d spans of %d bytes were being read, want %d", len(src.reads), size, most)
			}
			cancel()
			for _, done := range all {
				ends(t, done, context.Canceled)
			}
		})
	}
}

// Not all spans of a read are joined at once where an index says that there is
// next to nothing in each.
func TestShortSpans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5000
		x := &table{length: 1, size: n, from: make([]int64, n)}
		for i := range x.from {
			x.from[i] = 5 * int64(i)
		}
		src := &source{gate: make(chan struct{})}
		b := open(t, src, x, 0)
		done := begin(t.Context(), b, nil, 0, n)
		if want := [][2]int64{{0, 5 * 1024}}; !slices.Equal(src.reads, want) {
			t.Errorf("read %v, want %v", src.reads, want)
		}
		_ = b.Close()
		ends(t, done, fs.ErrClosed)
	})
}

// Many read, give up and drop at once; what is read is right.
func TestMany(t *testing.T) {
	content := fetchertest.Content(300_000, 1)
	b, _, _ := opened(t, content, 0, 50_000)
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 0))
			for i := range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%3 == 0 {
					go cancel()
				}
				off := rnd.IntN(len(content))
				p := make([]byte, 1+rnd.IntN(min(100_000, len(content)-off)))
				n, err := b.ReadAt(ctx, p, int64(off))
				if !bytes.Equal(p[:n], content[off:off+n]) || err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
				if cancel(); rnd.IntN(10) == 0 {
					_ = b.Drop(ctx, int64(off), int64(len(p))) // as the source does
				}
			}
		})
	}
	wg.Wait()
}
