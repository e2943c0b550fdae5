// SPDX-License-Identifier: Apache-2.0

package spans_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
)

func TestBlob(t *testing.T) {
	fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
		b, _, _ := opened(t, content, 3, 50_000)
		return b
	})
}

func TestOneReadOfTheSource(t *testing.T) {
	content := fetchertest.Content(200_000, 1)
	b, x, src := opened(t, content, 3, 100_000)
	want(t, b, content, 5*length+1, 3*length)
	from, _ := x.Stored(5)
	_, to := x.Stored(8)
	if want := [][2]int64{{from, to - from}}; !slices.Equal(src.reads, want) {
		t.Errorf("source was read at %v, want %v", src.reads, want)
	}
	for off := 5 * length; off < 9*length; off += 999 {
		want(t, b, content, off, 10)
	}
	want(t, b, content, 0, len(content))
	if len(src.reads) != 3 { // the first, and before and behind what was kept
		t.Errorf("source was read at %v, want 3 reads", src.reads)
	}
}

// What lies between spans is read if it is little.
func TestSpansFarApart(t *testing.T) {
	content := fetchertest.Content(3*length, 1)
	for gap, reads := range map[int]int{1 << 20: 1, 1<<20 + 1: 3} {
		b, _, src := opened(t, content, gap, -1)
		want(t, b, content, 0, len(content))
		if len(src.reads) != reads {
			t.Errorf("%d bytes between: source was read at %v, want %d reads", gap, src.reads, reads)
		}
	}
}

// A reader of a long range has the next part decoded before it has read the one
// before, 8 MiB of spans, and not more than that.
func TestAhead(t *testing.T) {
	content := fetchertest.Content(30<<20, 1)
	synctest.Test(t, func(t *testing.T) {
		b, _, src := opened(t, content, 0, 0)
		r, err := b.ReadRange(t.Context(), 0, b.Size())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make([]byte, len(content))
		at := 0
		for _, part := range []struct{ to, reads int }{{1, 1}, {837*length - 1, 1}, {838*length - 1, 2}, {len(content), 4}} {
			if _, err := io.ReadFull(r, got[at:part.to]); err != nil {
				t.Fatal(err)
			}
			at = part.to
			synctest.Wait()
			if len(src.reads) != part.reads {
				t.Errorf("after %d bytes the source was read %d times, want %d", at, len(src.reads), part.reads)
			}
		}
		if !bytes.Equal(got, content) {
			t.Error("wrong bytes")
		}
	})
}

// An error is that of its span, and names it; what may be a bad copy is dropped
// and read once more. Where the source fails, no other span is tried.
func TestErrors(t *testing.T) {
	content := fetchertest.Content(200_000, 1)
	for class, do := range map[error]func(x *table, src *source, from int64) (drops int){
		errChanged: func(_ *table, src *source, from int64) int { src.data[from+1000] ^= 1; return 1 },
		errCorrupt: func(x *table, _ *source, _ int64) int { x.corrupt = 7; return 0 },
		io.EOF:     func(_ *table, src *source, from int64) int { src.data = src.data[:from]; return 0 },
	} {
		b, x, src := opened(t, content, 3, 1)
		from, to := x.Stored(7)
		drops := do(x, src, from)
		p := make([]byte, 10*length)
		n, err := b.ReadAt(t.Context(), p, 0)
		if n != 7*length || !errors.Is(err, class) || !strings.Contains(err.Error(), "span 7 of test file") {
			t.Errorf("read %d bytes, %v; want %v of span 7", n, err, class)
		}
		cut := errors.Is(class, io.EOF)
		if !cut {
			want(t, b, content, 8*length, 2*length)
		}
		_ = b.Close() // waits
		if want := [][2]int64{{from, to - from}}[:drops]; !slices.Equal(src.dropped, want) || cut && len(src.reads) != 1 {
			t.Errorf("%v: dropped %v, want %v; read %v", class, src.dropped, want, src.reads)
		}
	}
}

func TestDrop(t *testing.T) {
	content := fetchertest.Content(200_000, 1)
	b, x, src := opened(t, content, 3, 200_000)
	want(t, b, content, 0, len(content))
	from, _ := x.Stored(3)
	_, to := x.Stored(4)
	if err := errors.Join(b.Drop(t.Context(), 4*length-1, 2), b.Drop(t.Context(), b.Size(), 10)); err != nil {
		t.Fatal(err)
	}
	want(t, b, content, 0, len(content))
	if want := [][2]int64{{from, to - from}}; !slices.Equal(src.dropped, want) || !slices.Equal(src.reads[1:], want) {
		t.Errorf("dropped %v, read %v, want %v again", src.dropped, src.reads, want)
	}
	if err := b.Expect(t.Context(), 4*length-1, 2); err != nil || src.dropped[1] != src.dropped[0] { // told in the same way
		t.Errorf("expected %v, %v", src.dropped[1:], err)
	}
}

// Spans are kept while there are reads, and not for long after; the last one
// however long it is, and none for who does not want any.
func TestKept(t *testing.T) {
	content := fetchertest.Content(200_000, 1)
	for recent, wants := range map[int][]int{-1: {2, 3, 4}, 1: {1, 1, 2}, 1 << 20: {1, 1, 2}} {
		synctest.Test(t, func(t *testing.T) {
			b, _, src := opened(t, content, 0, recent)
			want(t, b, content, 0, 10)
			for i, after := range []time.Duration{9 * time.Second, 9 * time.Second, 11 * time.Second} {
				time.Sleep(after)
				want(t, b, content, 100, 10)
				if len(src.reads) != wants[i] {
					t.Errorf("recent %d: %d reads of the source after %v, want %d", recent, len(src.reads), after, wants[i])
				}
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		b, _, src := opened(t, content, 0, 0)       // as is the format's custom
		for _, i := range []int{0, 1, 0, 2, 0, 1} { // 2 takes the place of 1
			want(t, b, content, i*length, 10)
			synctest.Wait()
		}
		if len(src.reads) != 4 {
			t.Errorf("%d reads of the source, want 4", len(src.reads))
		}
	})
}

func TestReadRangeBehindTheEnd(t *testing.T) {
	b, _, _ := opened(t, make([]byte, 1000), 0, 0)
	r, err := b.ReadRange(t.Context(), 1001, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []error{io.ErrUnexpectedEOF, fs.ErrClosed} {
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		_ = r.Close()
	}
}
