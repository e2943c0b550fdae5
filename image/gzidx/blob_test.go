// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
)

// A source is a Blob that tells of its reads, and can have them wait or damage
// them.
type source struct {
	memBlob
	gate chan struct{} // if not nil, reads wait for it to close
	seen chan struct{} // gets a token per read

	mu      sync.Mutex
	reads   [][2]int64
	dropped [][2]int64
	bad     int // byte that is wrong until it is dropped; 0 for none
	closed  bool
}

func (s *source) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.reads = append(s.reads, [2]int64{off, n})
	data := s.memBlob[off : off+n]
	if s.bad > 0 {
		data = slices.Clone(s.memBlob)[off : off+n]
		if i := s.bad - int(off); i >= 0 && i < len(data) {
			data[i] ^= 1
		}
	}
	s.mu.Unlock()
	if s.seen != nil {
		s.seen <- struct{}{}
	}
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (s *source) Drop(_ context.Context, off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped = append(s.dropped, [2]int64{off, n})
	if int64(s.bad) >= off && int64(s.bad) < off+n {
		s.bad = 0
	}
	return nil
}

func (s *source) Close() error {
	s.closed = true
	return nil
}

// indexed returns content, its gzip file, and an index of many spans.
func indexed(t testing.TB) (content, z, index []byte) {
	t.Helper()
	content = sources(t, 1<<20)
	z = gzipped(t, content, 6)
	_, index = build(t, z, gzidx.Options{Span: 128 << 10})
	return content, z, index
}

func TestOneReadOfTheSource(t *testing.T) {
	content, z, index := indexed(t)
	src := &source{memBlob: z}
	b := open(t, src, index)
	all, _ := points(t, index)
	p := make([]byte, all[4].de-all[2].de)
	if _, err := b.ReadAt(t.Context(), p, all[2].de+1); err != nil || !bytes.Equal(p, content[all[2].de+1:all[4].de+1]) {
		t.Fatal("wrong bytes", err)
	}
	from := all[2].en
	if all[2].bits > 0 {
		from--
	}
	if want := [][2]int64{{from, all[5].en - from}}; !slices.Equal(src.reads, want) {
		t.Errorf("source was read at %v, want %v", src.reads, want)
	}
	// What was decoded last needs no more of them.
	for off := all[2].de; off < all[5].de; off += 10_000 {
		if _, err := b.ReadAt(t.Context(), p[:100], off); err != nil {
			t.Fatal(err)
		}
	}
	if len(src.reads) != 1 {
		t.Errorf("source was read again: %v", src.reads)
	}
	r, err := b.ReadRange(t.Context(), 0, b.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Fatal("wrong bytes", err)
	}
	if n := int64(len(z)); len(src.reads) > 3 { // before and behind what is kept
		t.Errorf("%d bytes were read by %v", n, src.reads)
	}
}

func TestReadersShareASpan(t *testing.T) {
	content, z, index := indexed(t)
	src := &source{memBlob: z, gate: make(chan struct{}), seen: make(chan struct{}, 100)}
	b := open(t, src, index)
	start, end := b.Span(1 << 19)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			p := make([]byte, 1000)
			off := start + int64(i)*(end-start-1000)/20
			if _, err := b.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, content[off:off+1000]) {
				t.Errorf("read at %d: wrong bytes, %v", off, err)
			}
		})
	}
	<-src.seen
	close(src.gate)
	wg.Wait()
	if len(src.reads) != 1 {
		t.Errorf("source was read %d times", len(src.reads))
	}
}

// One reader's end is not the others', and that of the last ends the read.
func TestCancel(t *testing.T) {
	content, z, index := indexed(t)
	src := &source{memBlob: z, gate: make(chan struct{}), seen: make(chan struct{}, 100)}
	b := open(t, src, index)
	read := func(ctx context.Context, off int64) chan error {
		done := make(chan error, 1)
		go func() {
			p := make([]byte, 1000)
			_, err := b.ReadAt(ctx, p, off)
			if err == nil && !bytes.Equal(p, content[off:off+1000]) {
				err = errors.New("wrong bytes")
			}
			done <- err
		}()
		return done
	}
	first, cancelFirst := context.WithCancel(t.Context())
	one := read(first, 0)
	<-src.seen
	two := read(t.Context(), 1000)
	cancelFirst()
	if err := <-one; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	close(src.gate)
	if err := <-two; err != nil {
		t.Errorf("the other reader: %v", err)
	}
}

func TestCloseEndsReads(t *testing.T) {
	_, z, index := indexed(t)
	src := &source{memBlob: z, gate: make(chan struct{}), seen: make(chan struct{}, 1)}
	b := open(t, src, index)
	done := make(chan error)
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 10), 0)
		done <- err
	}()
	<-src.seen
	if err := b.Close(); err != nil || !src.closed {
		t.Errorf("Close: %v, closed the source: %v", err, src.closed)
	}
	if err := <-done; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read in flight: %v, want ErrClosed", err)
	}
	if _, err := b.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after Close: %v, want ErrClosed", err)
	}
}

// An endless is a source that gives empty blocks for ever.
type endless struct {
	memBlob
	started chan struct{}
	once    sync.Once
}

func (e *endless) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(e), nil
}

func (e *endless) Read(p []byte) (int, error) {
	e.once.Do(func() { close(e.started) })
	return copy(p, []byte{0, 0, 0, 0xff, 0xff}), nil
}

func TestCloseEndsDecoding(t *testing.T) {
	z := gzipped(t, []byte("content"), 6)
	_, index := build(t, z, gzidx.Options{})
	src := &endless{memBlob: z, started: make(chan struct{})}
	b := open(t, src, index)
	done := make(chan error)
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
		done <- err
	}()
	<-src.started
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read in flight: %v, want ErrClosed", err)
	}
}

// A fault of a cache's copy heals, and costs one more read.
func TestBadCopyIsDropped(t *testing.T) {
	content, z, index := indexed(t)
	all, _ := points(t, index)
	src := &source{memBlob: z, bad: int(all[3].en) + 1000}
	b := open(t, src, index)
	p := make([]byte, len(content))
	if _, err := b.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, content) {
		t.Fatalf("wrong bytes, %v", err)
	}
	from := all[3].en
	if all[3].bits > 0 {
		from--
	}
	if want := [][2]int64{{from, all[4].en - from}}; !slices.Equal(src.dropped, want) || len(src.reads) != 2 {
		t.Errorf("dropped %v, want %v; read %v", src.dropped, want, src.reads)
	}
}

func TestDrop(t *testing.T) {
	_, z, index := indexed(t)
	all, _ := points(t, index)
	src := &source{memBlob: z}
	b := open(t, src, index)
	for range 2 {
		if _, err := b.ReadAt(t.Context(), make([]byte, 10), all[1].de); err != nil {
			t.Fatal(err)
		}
		if err := b.Drop(t.Context(), all[1].de+5, 1); err != nil {
			t.Fatal(err)
		}
	}
	if len(src.reads) != 2 || len(src.dropped) != 2 || src.dropped[0] != src.reads[0] {
		t.Errorf("read %v, dropped %v", src.reads, src.dropped)
	}
}

func TestReadRangeBounds(t *testing.T) {
	content, z, index := indexed(t)
	b := open(t, memBlob(z), index)
	n := int64(len(content))
	for _, tt := range []struct {
		off, n, want int64
		err          error
	}{{0, 0, 0, nil}, {5, 10, 10, nil}, {n - 5, 5, 5, nil}, {n - 5, 6, 5, io.ErrUnexpectedEOF}, {n, 0, 0, nil}, {n + 9, 1, 0, io.ErrUnexpectedEOF}} {
		r, err := b.ReadRange(t.Context(), tt.off, tt.n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if int64(len(got)) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("range %d+%d: %d bytes, %v; want %d, %v", tt.off, tt.n, len(got), err, tt.want, tt.err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
	}
}
