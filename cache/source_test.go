// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// content returns n bytes that differ everywhere, the same each time.
func content(n int64) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(p)
	return p
}

// dgst returns a digest for name; the cache never hashes a blob.
func dgst(name string) digest.Digest { return digest.FromString(name) }

// A source is a blob in memory that remembers which ranges were asked for.
type source struct {
	data []byte

	// serve, if set, is called before bytes [off, off+n) of a request are
	// handed out, piece by piece. It may block or fail.
	serve func(ctx context.Context, off, n int64) error
	piece int64 // bytes handed out at once, default all

	mu     sync.Mutex // guards what follows
	log    []span
	closed bool
}

type span struct{ off, end int64 }

func (s span) String() string { return fmt.Sprintf("[%s, %s)", human(s.off), human(s.end)) }

func newSource(data []byte) *source { return &source{data: data} }

func (s *source) Size() int64 { return int64(len(s.data)) }

func (s *source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *source) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	r, err := s.ReadRange(ctx, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	return io.ReadFull(r, p)
}

func (s *source) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fs.ErrClosed
	}
	s.log = append(s.log, span{off, off + n})
	return &sourceReader{ctx, s, off, off + n}, nil
}

type sourceReader struct {
	ctx      context.Context
	s        *source
	off, end int64
}

func (r *sourceReader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	n := min(int64(len(p)), r.end-r.off)
	if r.s.piece > 0 {
		n = min(n, r.s.piece)
	}
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.s.serve != nil {
		if err := r.s.serve(r.ctx, r.off, n); err != nil {
			return 0, err
		}
	}
	copy(p[:n], r.s.data[r.off:])
	r.off += n
	return int(n), nil
}

func (r *sourceReader) Close() error { return nil }

// asked returns the ranges asked for since the last call, sorted.
func (s *source) asked() []span {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	slices.SortFunc(log, func(a, b span) int { return int(a.off - b.off) })
	return log
}

// openCache opens a cache in dir and closes it after the test, when it must
// have given back all memory.
func openCache(t testing.TB, opts cache.Options) *cache.Cache {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	if opts.MinFree == 0 {
		opts.MinFree = -1
	}
	c, err := cache.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeCache(t, c) })
	return c
}

func closeCache(t testing.TB, c *cache.Cache) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("close cache: %v", err)
	}
	// Readers whom Close released may still be on their way out.
	eventually(t, "all memory given back", func() bool { return c.Lent() == 0 && c.Stats().InflightBytes == 0 })
}

func openBlob(t testing.TB, c *cache.Cache, name string, src fetcher.Blob) *cache.Blob {
	t.Helper()
	b, err := c.Blob(dgst(name), src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close blob: %v", err)
		}
	})
	return b
}

// wantBytes fails t unless bytes [off, off+n) of b are those of data.
func wantBytes(t testing.TB, b fetcher.Blob, data []byte, off, n int64) {
	t.Helper()
	p := make([]byte, n)
	if _, err := b.ReadAt(context.Background(), p, off); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	if !bytes.Equal(p, data[off:off+n]) {
		t.Fatalf("read %d bytes at %d: wrong from byte %d on", n, off, off+mismatch(p, data[off:]))
	}
}

func mismatch(got, want []byte) int64 {
	for i := range got {
		if got[i] != want[i] {
			return int64(i)
		}
	}
	return -1
}

// eventually waits for a condition that no channel tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come true", what)
		}
	}
}

// noGoroutines fails t if goroutines of the package are left.
func noGoroutines(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		eventually(t, "end of all goroutines", func() bool {
			buf := make([]byte, 1<<20)
			buf = buf[:runtime.Stack(buf, true)]
			return !strings.Contains(string(buf), "cache.(*fetch)") && !strings.Contains(string(buf), "cache.(*Cache).writeLoop")
		})
	})
}

// human writes a number of bytes as scripts do.
func human(n int64) string {
	switch {
	case n != 0 && n%(1<<20) == 0:
		return fmt.Sprintf("%dM", n>>20)
	case n != 0 && n%(1<<10) == 0:
		return fmt.Sprintf("%dK", n>>10)
	}
	return fmt.Sprint(n)
}
