// SPDX-License-Identifier: Apache-2.0

package lsmt_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// A farBlob lets only those bytes be read that were expected, once it is strict.
type farBlob struct {
	*memBlob

	mu       sync.Mutex // guards all below
	strict   bool
	expected [][2]int64
}

var errUnexpected = errors.New("read of what was not expected")

func (b *farBlob) Expect(_ context.Context, off, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > 0 {
		b.expected = append(b.expected, [2]int64{off, off + n})
	}
	return nil
}

func (b *farBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ok := !b.strict
	for _, e := range b.expected {
		ok = ok || off >= e[0] && off+int64(len(p)) <= e[1]
	}
	if !ok {
		return 0, errUnexpected
	}
	return b.memBlob.ReadAt(ctx, p, off)
}

// forget returns how many times something was expected.
func (b *farBlob) forget() (times int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	times, b.expected, b.strict = len(b.expected), nil, true
	return times
}

// farStack returns a stack of layers of 1 MiB, one above the other.
func farStack(t *testing.T, layers ...[]byte) (*lsmt.Stack, []*farBlob) {
	t.Helper()
	var blobs []*farBlob
	var open []*lsmt.Layer
	for _, data := range layers {
		b := &farBlob{memBlob: newBlob(data)}
		l, err := lsmt.Open(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		b.forget()
		blobs, open = append(blobs, b), append(open, l)
	}
	s, err := lsmt.Merge(open)
	if err != nil {
		t.Fatal(err)
	}
	return s, blobs
}

func TestExpectIsWhatIsRead(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var layers [][]byte
	for range 3 {
		var sectors []int64
		for range 300 {
			sectors = append(sectors, rnd.Int64N(2048))
		}
		layers = append(layers, smallLayer(t, sectors...))
	}
	s, blobs := farStack(t, layers...)
	for range 100 {
		off := rnd.Int64N(s.Size())
		p := make([]byte, 1+rnd.Int64N(min(s.Size()-off, 100<<10)))
		if err := s.Expect(t.Context(), off, int64(len(p))); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ReadAt(t.Context(), p, off); err != nil {
			t.Fatalf("%d bytes at %d: %v", len(p), off, err)
		}
		for _, b := range blobs {
			b.forget()
		}
	}
	if err := s.Expect(t.Context(), s.Size()+1, 10); err != nil {
		t.Errorf("behind the end: %v", err)
	}
}

// TestExpectAsksOnce: what lies together in a layer is one request, although
// other layers hide parts of it.
func TestExpectAsksOnce(t *testing.T) {
	s, blobs := farStack(t, smallLayer(t, 1, 2, 3, 4, 5, 6, 7, 8), smallLayer(t, 3, 6))
	if err := s.Expect(t.Context(), 0, 8192); err != nil {
		t.Fatal(err)
	}
	for i, b := range blobs {
		if n := b.forget(); n != 1 {
			t.Errorf("layer %d was asked %d times", i, n)
		}
	}
}

func TestFar(t *testing.T) {
	s, _ := farStack(t, smallLayer(t, 1))
	if !s.Far() {
		t.Error("layer that is fetched is near")
	}
	if stackOf(t, smallLayer(t, 1)).Far() {
		t.Error("layer in memory is far")
	}
}
