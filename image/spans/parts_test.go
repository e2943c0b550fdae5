// SPDX-License-Identifier: Apache-2.0

package spans_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/spans"
)

// openParts is opened for a Blob whose content is kept elsewhere, so that of its
// spans no more is made than is wanted.
func openParts(t *testing.T, content []byte) (*spans.Blob, *table, *source) {
	t.Helper()
	x, data := stored(content, 0)
	src := &source{data: data, gate: make(chan struct{})}
	close(src.gate)
	return openWith(t, src, x, -1, piece, func() spans.Decoder { return &decoder{t: x} }), x, src
}

// readRange reads n bytes at off as one who keeps them does.
func readRange(t *testing.T, b *spans.Blob, off, n int) ([]byte, error) {
	t.Helper()
	r, err := b.ReadRange(t.Context(), int64(off), int64(n))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return io.ReadAll(r)
}

func wantRange(t *testing.T, b *spans.Blob, content []byte, off, n int) {
	t.Helper()
	if got, err := readRange(t, b, off, n); err != nil || !bytes.Equal(got, content[off:off+n]) {
		t.Errorf("%d bytes at %d: %v, or other bytes", n, off, err)
	}
}

// asked returns what was asked for since it was called last.
func (s *source) asked() [][2]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.reads
	s.reads = nil
	return all
}

// TestParts: of a span, no more is read than what is wanted is made of, and that
// is read once.
func TestParts(t *testing.T) {
	content := fetchertest.Content(5*length, 1)
	b, x, src := openParts(t, content)
	if !b.Parts() {
		t.Fatal("parts of spans are said to cost as much as all of them")
	}
	wantRange(t, b, content, length+1000, 500)
	first := src.asked()
	if len(first) != 1 || first[0][0] != x.from[1] || first[0][1] > length/2 {
		t.Errorf("1500 bytes of a span of %d were read by %v", length, first)
	}
	wantRange(t, b, content, length+1500, length-1500)
	rest := src.asked()
	if len(rest) != 1 || rest[0][0] != x.from[1]+first[0][1] || rest[0][0]+rest[0][1] != x.from[2] {
		t.Errorf("the rest of the span was read by %v, after %v", rest, first)
	}
	wantRange(t, b, content, 2*length+100, 2*length)
	if got := src.asked(); len(got) != 1 || got[0][0] != x.from[2] || got[0][1] > 2*length+length/2 {
		t.Errorf("two spans, and a bit of a third, were read by %v", got)
	}
}

// TestPartsTooLittle: where content is compressed unevenly, what is asked for may
// prove too little.
func TestPartsTooLittle(t *testing.T) {
	content := fetchertest.Content(length, 1)
	x, data := stored(content, 0)
	src := &source{data: data, gate: make(chan struct{})}
	close(src.gate)
	b := openWith(t, src, x, -1, piece, func() spans.Decoder { return &greedy{decoder{t: x}} })
	wantRange(t, b, content, 1000, 1500)
	if got := src.asked(); len(got) != 2 || got[0][0]+got[0][1] != got[1][0] || got[1][0]+got[1][1] != int64(len(data)) {
		t.Errorf("asked for %v", got)
	}
}

// A greedy decoder reads all of a span before it has anything of it.
type greedy struct{ decoder }

func (d *greedy) Decode(i int, found func([]byte) error) error {
	from, to := d.t.Stored(i)
	p := make([]byte, to-from)
	if _, err := io.ReadFull(d.r, p); err != nil {
		return err
	}
	d.r = bytes.NewReader(p)
	return d.decoder.Decode(i, found)
}

// TestPartsChanged: bytes that are kept of a span, and are wrong, are read again.
func TestPartsChanged(t *testing.T) {
	content := fetchertest.Content(2*length, 1)
	b, x, src := openParts(t, content)
	wantRange(t, b, content, 0, 500)
	src.asked()
	good := src.data
	src.mu.Lock()
	src.data = slices.Clone(good)
	src.data[x.from[0]+6000] ^= 1
	src.mu.Unlock()
	if got, err := readRange(t, b, 500, length-500); !errors.Is(err, errChanged) || !bytes.HasPrefix(content[500:], got) {
		t.Errorf("%v, and %d bytes, which may be wrong", err, len(got))
	}
	if got := src.asked(); len(got) != 2 || got[1][0] != x.from[0] {
		t.Errorf("after wrong bytes it asked for %v, want all of the span again", got)
	}
	src.mu.Lock()
	src.data = good
	src.mu.Unlock()
	wantRange(t, b, content, 500, length-500)
}

// TestPartsTogether: readers of any parts at the same time, and of others later,
// get what is there.
func TestPartsTogether(t *testing.T) {
	content := fetchertest.Content(20*length, 1)
	b, _, _ := openParts(t, content)
	for range 20 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				off := rand.IntN(len(content))
				wantRange(t, b, content, off, rand.IntN(min(len(content)-off, 3*length)+1))
			})
		}
		wg.Wait()
	}
}
