// SPDX-License-Identifier: Apache-2.0

package zfile_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// An expectingBlob lets only those bytes be read that were expected, once it is
// told to.
type expectingBlob struct {
	memBlob
	strict bool
	lo, hi int64 // expected
}

var errUnexpected = errors.New("read of what was not expected")

func (b *expectingBlob) Expect(_ context.Context, off, n int64) error {
	b.lo, b.hi = off, off+n
	return nil
}

func (b *expectingBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if b.strict && (off < b.lo || off+int64(len(p)) > b.hi) {
		return 0, errUnexpected
	}
	return b.memBlob.ReadAt(ctx, p, off)
}

func TestExpectIsWhatIsRead(t *testing.T) {
	raw := mixed(300_000)
	src := &expectingBlob{memBlob: compress(t, raw, zfile.Options{})}
	r := open(t, src)
	src.strict = true
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		off := rnd.Int64N(int64(len(raw)))
		p := make([]byte, 1+rnd.Int64N(int64(len(raw))-off))
		if err := r.Expect(t.Context(), off, int64(len(p))); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadAt(t.Context(), p, off); err != nil {
			t.Fatalf("%d bytes at %d: %v", len(p), off, err)
		}
	}
	if err := r.Expect(t.Context(), r.Size(), 10); err != nil || src.hi-src.lo != 0 {
		t.Errorf("behind the end: %v, %d bytes expected", err, src.hi-src.lo)
	}
	if err := fetcher.Expect(t.Context(), open(t, src.memBlob), 0, 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("source that does not fetch: got %v", err)
	}
}
