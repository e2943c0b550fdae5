// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// openFunc is an Opener as a function.
type openFunc func(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error)

func (f openFunc) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	return f(ctx, ref)
}

func openRef(t testing.TB, o fetcher.Opener, ref fetcher.Ref) fetcher.Blob {
	t.Helper()
	b, err := o.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestOpenerNeedsNoNetworkForACachedBlob(t *testing.T) {
	dir, data := t.TempDir(), content(300<<10)
	fill(t, dir, "x", data)
	o := openCache(t, cache.Options{Dir: dir}).Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
		t.Error("the source was opened")
		return nil, fetcher.ErrTemporary
	}))
	b := openRef(t, o, fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: int64(len(data))})
	wantBytes(t, b, data, 0, int64(len(data)))
}

func TestOpenerOpensOnceAtTheFirstMiss(t *testing.T) {
	data := content(4 << 20)
	src := newSource(data)
	var opened atomic.Int64
	o := openCache(t, cache.Options{}).Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
		if opened.Add(1) == 1 {
			return nil, fetcher.ErrTemporary
		}
		return src, nil
	}))
	b := openRef(t, o, fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: int64(len(data))})
	if n := opened.Load(); n != 0 {
		t.Fatal("the source was opened before a read")
	}
	if _, err := b.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v, want the error of open", err)
	}
	var wg sync.WaitGroup
	for off := int64(0); off < 4<<20; off += 512 << 10 {
		wg.Go(func() { wantBytes(t, b, data, off, 1000) })
	}
	wg.Wait()
	if n := opened.Load(); n != 2 {
		t.Errorf("opened %d times, want once after the failure", n)
	}
	if err := fetcher.Drop(t.Context(), b, 0, 1); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil || !src.isClosed() {
		t.Errorf("close: %v, source closed %t", err, src.isClosed())
	}
}

func TestOpenerOfUnknownSizeAsksTheSource(t *testing.T) {
	data := content(1000)
	o := openCache(t, cache.Options{}).Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
		return newSource(data), nil
	}))
	b := openRef(t, o, fetcher.Ref{URL: "https://r/x", Digest: dgst("x")})
	if b.Size() != 1000 {
		t.Errorf("size %d, want 1000", b.Size())
	}
	wantBytes(t, b, data, 0, 1000)
}

func TestOpenerRefusesASourceOfOtherSize(t *testing.T) {
	src := newSource(content(999))
	o := openCache(t, cache.Options{}).Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
		return src, nil
	}))
	b := openRef(t, o, fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: 1000})
	_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
	if err == nil || !strings.Contains(err.Error(), "999 bytes, want 1000") || !src.isClosed() {
		t.Errorf("got %v, source closed %t", err, src.isClosed())
	}
}

func TestOpenerPassesThroughAndRefuses(t *testing.T) {
	direct := newSource(nil)
	o := openCache(t, cache.Options{}).Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
		return direct, nil
	}))
	for _, c := range []struct {
		name string
		ref  fetcher.Ref
		pass bool
	}{
		{"no digest", fetcher.Ref{URL: "https://r/x"}, true},
		{"local file", fetcher.Ref{URL: "file:///x", Digest: dgst("x"), Size: 5}, true},
		{"path in digest", fetcher.Ref{URL: "https://r/x", Digest: "sha256:../../../../etc/passwd"}, false},
		{"upper case", fetcher.Ref{URL: "https://r/x", Digest: digest.Digest("sha256:" + strings.ToUpper(dgst("x").Encoded()))}, false},
		{"other algorithm", fetcher.Ref{URL: "https://r/x", Digest: digest.Digest("sha512:" + strings.Repeat("a", 128))}, false},
		{"no algorithm", fetcher.Ref{URL: "https://r/x", Digest: digest.Digest(dgst("x").Encoded())}, false},
		{"too short", fetcher.Ref{URL: "https://r/x", Digest: "sha256:aa"}, false},
		{"negative size", fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: -1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := o.Open(t.Context(), c.ref)
			if c.pass && (err != nil || b != fetcher.Blob(direct)) {
				t.Errorf("got %v, %v; want the source itself", b, err)
			}
			if !c.pass && err == nil {
				t.Error("the ref was accepted")
			}
		})
	}
}

func TestCloseDuringLazyOpen(t *testing.T) {
	src := newSource(content(1000))
	opening, proceed := make(chan struct{}), make(chan struct{})
	o := openCache(t, cache.Options{}).Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
		close(opening)
		<-proceed // ignores ctx
		return src, nil
	}))
	b := openRef(t, o, fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: 1000})
	read, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
		read <- err
	}()
	<-opening
	go func() { closed <- b.Close() }()
	if err := <-read; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read: got %v", err)
	}
	close(proceed)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if !src.isClosed() {
		t.Error("a source opened after close was leaked")
	}
}
