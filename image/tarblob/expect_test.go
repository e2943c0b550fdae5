// SPDX-License-Identifier: Apache-2.0

package tarblob_test

import (
	"context"
	"errors"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
)

// A farBlob notes what is expected of it.
type farBlob struct {
	fakeBlob
	expected [][2]int64
}

func (f *farBlob) Expect(_ context.Context, off, n int64) error {
	f.expected = append(f.expected, [2]int64{off, n})
	return nil
}

func TestExpect(t *testing.T) {
	src := &farBlob{fakeBlob: fakeBlob{data: wrap(t, make([]byte, 10_000))}}
	b, err := tarblob.Open(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	payload, ok := b.(*tarblob.Payload)
	if !ok {
		t.Fatalf("a %T was opened", b)
	}
	head := payload.Offset()
	for _, tc := range []struct{ off, n, wantOff, wantN int64 }{
		{0, 10, head, 10},
		{9_990, 100, head + 9_990, 10},
		{-5, 5, head, 5},
		{20_000, 5, head + 20_000, 0},
	} {
		if err := fetcher.Expect(t.Context(), b, tc.off, tc.n); err != nil {
			t.Fatal(err)
		}
		if got := src.expected[len(src.expected)-1]; got != [2]int64{tc.wantOff, tc.wantN} {
			t.Errorf("%d bytes at %d: source was told %v", tc.n, tc.off, got)
		}
	}
	near, err := tarblob.Open(t.Context(), &src.fakeBlob)
	if err != nil {
		t.Fatal(err)
	}
	if err := fetcher.Expect(t.Context(), near, 0, 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("source that does not fetch: got %v", err)
	}
}
