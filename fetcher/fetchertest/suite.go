// SPDX-License-Identifier: Apache-2.0

package fetchertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Run holds the blobs that open makes of a content against the contract of
// fetcher.Blob, and of fetcher.RangeReader where they implement it. Blobs are
// closed by the suite.
func Run(t *testing.T, open func(t *testing.T, content []byte) fetcher.Blob) {
	t.Helper()
	content := Content(300_001, 1) // an odd size, and more than one fallback chunk
	opened := func(t *testing.T) fetcher.Blob {
		b := open(t, content)
		t.Cleanup(func() { _ = b.Close() })
		return b
	}
	t.Run("Size", func(t *testing.T) {
		if got, want := opened(t).Size(), int64(len(content)); got != want {
			t.Errorf("Size() = %d, want %d", got, want)
		}
	})
	t.Run("ReadAt", func(t *testing.T) { testReadAt(t, opened(t), content) })
	t.Run("Negative", func(t *testing.T) {
		if n, err := opened(t).ReadAt(t.Context(), make([]byte, 1), -1); n != 0 || err == nil || errors.Is(err, io.EOF) {
			t.Errorf("ReadAt(-1) = %d, %v; want an error other than io.EOF", n, err)
		}
	})
	t.Run("ReadRange", func(t *testing.T) { testReadRange(t, opened(t), content) })
	t.Run("Concurrent", func(t *testing.T) { testConcurrent(t, opened(t), content) })
	t.Run("Cancelled", func(t *testing.T) { testCancelled(t, opened(t), content) })
	t.Run("Closed", func(t *testing.T) { testClosed(t, opened(t)) })
	t.Run("Empty", func(t *testing.T) {
		b := open(t, nil)
		defer func() { _ = b.Close() }()
		if n, err := b.ReadAt(t.Context(), make([]byte, 1), 0); b.Size() != 0 || n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("size %d, ReadAt = %d, %v; want 0, 0, io.EOF", b.Size(), n, err)
		}
	})
}

// Content returns n bytes that depend on the seed alone and do not repeat.
func Content(n int, seed uint64) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

func testReadAt(t *testing.T, b fetcher.Blob, content []byte) {
	size := int64(len(content))
	for _, c := range []struct {
		name   string
		off, n int64
		want   int64
		eof    bool
	}{
		{"first byte", 0, 1, 1, false},
		{"middle", 4097, 70_000, 70_000, false},
		{"last byte", size - 1, 1, 1, false},
		{"whole", 0, size, size, false},
		{"over the end", size - 10, 20, 10, true},
		{"longer than the blob", 0, size + 1, size, true},
		{"at the end", size, 1, 0, true},
		{"past the end", size + 100, 1, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := make([]byte, c.n)
			n, err := b.ReadAt(t.Context(), p, c.off)
			if int64(n) != c.want {
				t.Fatalf("got %d bytes and %v, want %d", n, err, c.want)
			}
			if c.eof != errors.Is(err, io.EOF) {
				t.Errorf("got error %v, want io.EOF: %v", err, c.eof)
			}
			if !c.eof && err != nil && c.off+c.n < size {
				t.Errorf("got error %v", err)
			}
			if n > 0 && !bytes.Equal(p[:n], content[c.off:c.off+int64(n)]) {
				t.Errorf("got bytes other than %d-%d", c.off, c.off+int64(n)-1)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		if n, err := b.ReadAt(t.Context(), nil, 5); n != 0 || err != nil {
			t.Errorf("got %d, %v; want 0, nil", n, err)
		}
	})
}

func testReadRange(t *testing.T, b fetcher.Blob, content []byte) {
	size := int64(len(content))
	for _, c := range []struct {
		name   string
		off, n int64
		short  bool
	}{
		{"middle", 100, 5000, false},
		{"whole", 0, size, false},
		{"nothing", 7, 0, false},
		{"over the end", size - 10, 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := fetcher.ReadRange(t.Context(), b, c.off, c.n)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if c.short != errors.Is(err, io.ErrUnexpectedEOF) || !c.short && err != nil {
				t.Errorf("got error %v, want io.ErrUnexpectedEOF: %v", err, c.short)
			}
			if want := content[c.off:min(c.off+c.n, size)]; !bytes.Equal(got, want) {
				t.Errorf("got %d bytes that differ from the %d of the range", len(got), len(want))
			}
		})
	}
	t.Run("closed early", func(t *testing.T) {
		r, err := fetcher.ReadRange(t.Context(), b, 0, size)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 10)
		if _, err := io.ReadFull(r, p); err != nil || !bytes.Equal(p, content[:10]) {
			t.Errorf("got %x, %v; want %x", p, err, content[:10])
		}
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := b.ReadAt(t.Context(), p, 20); err != nil || !bytes.Equal(p, content[20:30]) {
			t.Errorf("read after a stream was closed early: got %x, %v; want %x", p, err, content[20:30])
		}
	})
}

func testConcurrent(t *testing.T, b fetcher.Blob, content []byte) {
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for range 20 {
				off := rng.IntN(len(content))
				p := make([]byte, 1+rng.IntN(len(content)-off))
				if n, err := b.ReadAt(t.Context(), p, int64(off)); n != len(p) || err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("ReadAt(%d bytes at %d) = %d, %v", len(p), off, n, err)
				} else if !bytes.Equal(p, content[off:off+n]) {
					t.Errorf("ReadAt(%d bytes at %d) got other bytes", len(p), off)
				}
			}
		})
	}
	wg.Wait()
}

// testCancelled wants a read with a cancelled context to fail with its error
// or to succeed, and the blob to be none the worse.
func testCancelled(t *testing.T, b fetcher.Blob, content []byte) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := make([]byte, 100)
	if n, err := b.ReadAt(ctx, p, 50); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt with a cancelled context: got %v, want context.Canceled", err)
	} else if err == nil && (n != len(p) || !bytes.Equal(p, content[50:150])) {
		t.Error("ReadAt with a cancelled context: got no error and other bytes")
	}
	if _, err := b.ReadAt(t.Context(), p, 50); err != nil || !bytes.Equal(p, content[50:150]) {
		t.Errorf("ReadAt after a cancelled one: %v", err)
	}
}

func testClosed(t *testing.T, b fetcher.Blob) {
	size := b.Size()
	if err := b.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if _, err := b.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("ReadAt after Close: got %v, want fs.ErrClosed", err)
	}
	r, err := fetcher.ReadRange(t.Context(), b, 0, 1)
	if err == nil {
		_, err = io.ReadAll(r)
		_ = r.Close()
	}
	if !errors.Is(err, fs.ErrClosed) {
		t.Errorf("ReadRange after Close: got %v, want fs.ErrClosed", err)
	}
	if b.Size() != size {
		t.Errorf("Size after Close: got %d, want %d", b.Size(), size)
	}
}
