// SPDX-License-Identifier: Apache-2.0

package spans_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/spans"
)

var (
	errChanged = errors.New("source is not what it was")
	errCorrupt = errors.New("index is wrong")
)

const (
	length = 10_000 // of a span
	piece  = 2500
)

// A table is one of spans that are stored as they are, in pieces behind a CRC
// each.
type table struct {
	length, size int64
	from         []int64
	corrupt      int // span that the table is wrong about; 0 for none
}

func (t *table) Size() int64        { return t.size }
func (t *table) Find(off int64) int { return int(off / t.length) }
func (t *table) Span(i int) (start, end int64) {
	return int64(i) * t.length, min(int64(i+1)*t.length, t.size)
}

func (t *table) Stored(i int) (from, to int64) {
	start, end := t.Span(i)
	return t.from[i], t.from[i] + end - start + 4*((end-start+piece-1)/piece)
}

// stored returns how content is stored, with gap bytes before each span.
func stored(content []byte, gap int) (*table, []byte) {
	t := &table{length: length, size: int64(len(content))}
	var b []byte
	for p := range slices.Chunk(content, length) {
		b = append(b, make([]byte, gap)...)
		t.from = append(t.from, int64(len(b)))
		for p := range slices.Chunk(p, piece) {
			b = append(binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(p)), p...)
		}
	}
	return t, b
}

type decoder struct {
	t   *table
	r   io.Reader
	pos int64
}

func (d *decoder) Reset(r io.Reader, i int) error {
	d.r, d.pos = r, d.t.from[i]
	return nil
}

func (d *decoder) Decode(i int, found func([]byte) error) error {
	from, to := d.t.Stored(i)
	if _, err := io.CopyN(io.Discard, d.r, from-d.pos); err != nil {
		return err
	}
	if i > 0 && i == d.t.corrupt {
		return errCorrupt
	}
	start, end := d.t.Span(i)
	p, done := make([]byte, end-start), 0
	for done < len(p) {
		var sum [4]byte
		next := p[done:min(done+piece, len(p))]
		if _, err := io.ReadFull(d.r, sum[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(d.r, next); err != nil {
			return err
		}
		if crc32.ChecksumIEEE(next) != binary.LittleEndian.Uint32(sum[:]) {
			return errChanged
		}
		done += len(next)
		if err := found(p[:done]); err != nil {
			return err
		}
	}
	d.pos = to
	return nil
}

// A source is a Blob that tells of its reads, which wait for the gate to close,
// and where the source stalls for that to close.
type source struct {
	fetcher.Blob // nil: the rest is not called
	data         []byte
	gate         chan struct{}
	stall        chan struct{} // nil for one that goes on
	at           int64         // byte from which on it stalls

	mu      sync.Mutex // guards all below
	reads   [][2]int64
	dropped [][2]int64
	given   int // reads that were given up while they waited
	closed  bool
}

func (s *source) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.reads = append(s.reads, [2]int64{off, n})
	s.mu.Unlock()
	select {
	case <-s.gate:
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.given++
		return nil, ctx.Err()
	}
	s.mu.Lock()
	r := io.NewSectionReader(bytes.NewReader(s.data), off, n)
	s.mu.Unlock()
	if s.stall == nil {
		return io.NopCloser(r), nil
	}
	before := max(s.at-off, 0)
	return io.NopCloser(io.MultiReader(io.LimitReader(r, before), &stalled{ctx, s}, r)), nil
}

// A stalled is empty, but that takes until its source goes on.
type stalled struct {
	ctx context.Context
	s   *source
}

func (s *stalled) Read([]byte) (int, error) {
	select {
	case <-s.s.stall:
		return 0, io.EOF
	case <-s.ctx.Done():
		s.s.mu.Lock()
		defer s.s.mu.Unlock()
		s.s.given++
		return 0, s.ctx.Err()
	}
}

func (s *source) Drop(_ context.Context, off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped = append(s.dropped, [2]int64{off, n})
	return nil
}

func (s *source) Expect(ctx context.Context, off, n int64) error { return s.Drop(ctx, off, n) }

func (s *source) Close() error {
	s.closed = true
	return nil
}

// opened returns a Blob of content that keeps recent bytes, and what it is made
// of, with gap bytes before each span.
func opened(t testing.TB, content []byte, gap, recent int) (*spans.Blob, *table, *source) {
	t.Helper()
	x, data := stored(content, gap)
	src := &source{data: data, gate: make(chan struct{})}
	close(src.gate)
	return open(t, src, x, recent), x, src
}

func open(t testing.TB, src *source, x *table, recent int) *spans.Blob {
	t.Helper()
	return openWith(t, src, x, recent, 0, func() spans.Decoder { return &decoder{t: x} })
}

func openWith(t testing.TB, src *source, x *table, recent, part int, newDecoder func() spans.Decoder) *spans.Blob {
	t.Helper()
	b := spans.New(t.Context(), src, x, spans.Format{
		Name:       "test file",
		NewDecoder: newDecoder,
		Part:       part,
		Changed:    errChanged,
		Corrupt:    errCorrupt,
		Recent:     2 * length,
	}, spans.Options{Recent: recent})
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// want wants n bytes at off to be those of content.
func want(t testing.TB, b *spans.Blob, content []byte, off, n int) {
	t.Helper()
	p := make([]byte, n)
	if _, err := b.ReadAt(t.Context(), p, int64(off)); err != nil || !bytes.Equal(p, content[off:off+n]) {
		t.Errorf("%d bytes at %d: %v, or other bytes", n, off, err)
	}
}
