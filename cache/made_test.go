// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
)

// doubled is made of a blob: each of its bytes twice, in spans.
type doubled struct{ fetcher.Blob }

func double(_ context.Context, src fetcher.Blob) (fetcher.Blob, error) { return doubled{src}, nil }

func (d doubled) Size() int64 { return 2 * d.Blob.Size() }

func (d doubled) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	half := make([]byte, len(p)/2+1)
	if _, err := d.Blob.ReadAt(ctx, half[:min(int64(len(half)), d.Blob.Size()-off/2)], off/2); err != nil {
		return 0, err
	}
	for i := range p {
		p[i] = half[(int64(i)+off%2)/2]
	}
	return len(p), nil
}

func (doubled) Parts() bool { return false }

func (d doubled) Span(off int64) (start, end int64) {
	const span = 1 << 20
	return off &^ (span - 1), min(off&^(span-1)+span, d.Size())
}

func twice(p []byte) []byte {
	q := make([]byte, 0, 2*len(p))
	for _, b := range p {
		q = append(q, b, b)
	}
	return q
}

func TestOpenMade(t *testing.T) {
	data := content(3 << 20)
	ref := fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: int64(len(data))}
	dir, src, opened := t.TempDir(), newSource(data), 0
	next := openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
		opened++
		return src, nil
	})
	c := openCache(t, cache.Options{Dir: dir})
	b, err := fetcher.OpenMade(t.Context(), c.Opener(next), ref, dgst("key"), double)
	if err != nil {
		t.Fatal(err)
	}
	if opened != 0 || b.Size() != 6<<20 {
		t.Errorf("%d bytes, opened %d times before the first read", b.Size(), opened)
	}
	want := twice(data)
	for range 2 {
		wantBytes(t, b, want, 0, int64(len(want)))
	}
	if s := c.Stats(); s.FetchedBytes > int64(len(data))*11/10 || s.WrittenBytes > int64(len(want)) {
		t.Errorf("%d bytes came from the source of %d: %+v", s.FetchedBytes, len(data), s)
	}
	c.Quiesce()
	if err := errors.Join(b.Close(), c.Close()); err != nil || !src.isClosed() || opened != 1 {
		t.Errorf("close: %v, source opened %d times, closed %t", err, opened, src.isClosed())
	}

	gone := openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) { return nil, fetcher.ErrTemporary })
	b, err = fetcher.OpenMade(t.Context(), openCache(t, cache.Options{Dir: dir}).Opener(gone), ref, dgst("key"), double)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	wantBytes(t, b, want, 0, int64(len(want)))
}

// TestOpenMadeFails: whatever fails, the source is closed, and the error says
// which blob it was.
func TestOpenMadeFails(t *testing.T) {
	data := content(1 << 20)
	ref := fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: int64(len(data))}
	other := ref
	other.Size = 5
	for name, tc := range map[string]struct {
		ref fetcher.Ref
		key digest.Digest
		mk  fetcher.Maker
	}{
		"no key":      {ref, "", double},
		"path as key": {ref, "sha256:../../x", double},
		"maker": {ref, dgst("k"), func(_ context.Context, src fetcher.Blob) (fetcher.Blob, error) {
			return nil, fmt.Errorf("not to be made of %s", ref.Digest)
		}},
		"another size": {other, dgst("k"), double},
	} {
		t.Run(name, func(t *testing.T) {
			var src *source
			o := openCache(t, cache.Options{}).Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) {
				src = newSource(data)
				return src, nil
			}))
			b, err := fetcher.OpenMade(t.Context(), o, tc.ref, tc.key, tc.mk)
			if err == nil {
				_, err = b.ReadAt(t.Context(), make([]byte, 5), 0)
				defer b.Close()
			}
			if err == nil || !strings.Contains(err.Error(), ref.Digest.String()) || errors.Is(err, fetcher.ErrTemporary) {
				t.Errorf("got %v; want a lasting error that names the blob", err)
			}
			if src != nil && !src.isClosed() {
				t.Error("the source is left open")
			}
		})
	}
}

// TestMadeContract holds what is made of a blob, and kept, against the contract.
func TestMadeContract(t *testing.T) {
	fetchertest.Run(t, func(t *testing.T, want []byte) fetcher.Blob {
		c := openCache(t, cache.Options{})
		o := c.Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) { return newSource(want), nil }))
		ref := fetcher.Ref{URL: "https://r/x", Digest: dgst("x"), Size: int64(len(want))}
		b, err := fetcher.OpenMade(t.Context(), o, ref, dgst("key"), func(_ context.Context, src fetcher.Blob) (fetcher.Blob, error) {
			return equal{src}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// equal is made of a blob, and is the same.
type equal struct{ fetcher.Blob }

func (equal) Parts() bool { return false }

func (e equal) Span(off int64) (start, end int64) {
	const span = 50000
	return off - off%span, min(off-off%span+span, e.Size())
}

func (e equal) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return fetcher.ReadRange(ctx, e.Blob, off, n)
}

// TestSizeIsRemembered: a blob of which there are blocks on disk opens without
// being asked how large it is.
func TestSizeIsRemembered(t *testing.T) {
	dir, data := t.TempDir(), content(300<<10)
	fill(t, dir, "x", data)
	c := openCache(t, cache.Options{Dir: dir})
	o := c.Opener(openFunc(func(context.Context, fetcher.Ref) (fetcher.Blob, error) { return nil, fetcher.ErrTemporary }))
	for range 2 { // from the record, and from the blob that is open
		b := openRef(t, o, fetcher.Ref{URL: "https://r/x", Digest: dgst("x")})
		got := make([]byte, len(data))
		if _, err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("wrong bytes, or %v", err)
		}
	}
	if _, err := o.Open(t.Context(), fetcher.Ref{URL: "https://r/y", Digest: dgst("y")}); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v for a blob that nobody knows", err)
	}
}
