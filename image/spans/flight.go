// SPDX-License-Identifier: Apache-2.0

package spans

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A flight is a span that is being decoded for whoever waits for it.
type flight struct {
	span int
	run  *run // nil if it is there
	progress
}

// A run decodes spans that follow each other, of one read of the source. It is
// abandoned when nobody waits for its flights any more.
type run struct {
	flights   []*flight
	waiting   int  // references to flights; guarded by Blob.mu
	abandoned bool // no flight is to begin any more; guarded by Blob.mu
	ctx       context.Context
	cancel    context.CancelFunc
}

const (
	// maxRun is how much content one read of the source may be decoded to, in
	// bytes, beyond a single span: what a reader of a long range holds in
	// memory.
	maxRun = 8 << 20

	// maxSpans bounds the same for an index whose spans have next to nothing.
	maxSpans = 1024

	// maxSkip is how many bytes between two spans one read of the source takes
	// in vain; behind more, another begins.
	maxSkip = 1 << 20

	// maxWork is how much content the runs of a Blob that are under way may
	// have, in bytes, and minWork what one counts for at least; the others
	// wait. Most of the time a run waits for bytes: if few were under way, a
	// read that somebody waits for would wait for others to arrive. So there
	// may be 32 short ones, 16 of the length of maxRun, and two of the longest
	// spans there are.
	maxWork = 128 << 20
	minWork = 4 << 20
)

// join returns flights of the spans from first on, to last or as many as one
// reader should hold. The caller leaves each when done with it.
func (b *Blob) join(first, last int) ([]*flight, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fs.ErrClosed
	}
	b.linger()
	start, _ := b.table.Span(first)
	var joined, fresh []*flight
	for i := first; i <= last; i++ {
		if _, end := b.table.Span(i); i > first && end-start > maxRun || i-first == maxSpans {
			break
		}
		f := b.flights[i]
		if f == nil {
			f = b.recent.flight(i)
		}
		if f != nil || i > first && b.apart(i) {
			fresh = b.launch(fresh)
		}
		if f == nil {
			f = &flight{span: i}
			b.flights[i] = f
			fresh = append(fresh, f)
		}
		joined = append(joined, f)
	}
	b.launch(fresh)
	for _, f := range joined {
		if f.run != nil {
			f.run.waiting++
		}
	}
	return joined, nil
}

// apart reports whether span i lies far behind the one before it.
func (b *Blob) apart(i int) bool {
	_, to := b.table.Stored(i - 1)
	from, _ := b.table.Stored(i)
	return from-to > maxSkip
}

// launch starts a run of flights, and returns none. b.mu is held.
func (b *Blob) launch(flights []*flight) []*flight {
	if len(flights) == 0 {
		return nil
	}
	r := &run{flights: flights}
	r.ctx, r.cancel = context.WithCancel(b.ctx)
	for _, f := range flights {
		f.run = r
	}
	b.running.Add(1)
	go b.fly(r)
	return nil
}

// leave gives up on flights, and abandons runs that nobody waits for.
func (b *Blob) leave(flights []*flight) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range flights {
		r := f.run
		if r == nil {
			continue
		}
		if r.waiting--; r.waiting == 0 {
			b.abandon(r)
		}
	}
}

// abandon ends a run, but not with a span of which somebody had a part: who reads
// on a little later would have it decoded from its start again. b.mu is held.
func (b *Blob) abandon(r *run) {
	r.abandoned = true
	begun := false
	for _, f := range r.flights {
		if f.begun() { // at most one is
			begun = true
			continue
		}
		b.forget(f)
	}
	if !begun {
		r.cancel()
	}
}

// ended returns why r is to begin no other flight, if it is.
func (b *Blob) ended(r *run) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.abandoned {
		return context.Canceled
	}
	return r.ctx.Err()
}

// forget makes the next reader of a span decode it anew, unless it is kept. It
// reports whether the next reader would have joined f.
func (b *Blob) forget(f *flight) bool {
	known := b.flights[f.span] == f
	if known {
		delete(b.flights, f.span)
	}
	return known
}

// land ends a flight.
func (b *Blob) land(f *flight, err error) {
	b.mu.Lock()
	if known := b.forget(f); known && err == nil && !b.closed {
		b.recent.keep(f.span, f.data) // which nobody changes any more
		b.linger()
	}
	b.mu.Unlock()
	f.end(err)
}

// fly decodes the flights of r.
func (b *Blob) fly(r *run) {
	defer b.running.Done()
	defer r.cancel()
	first, last := r.flights[0].span, r.flights[len(r.flights)-1].span
	start, _ := b.table.Span(first)
	_, end := b.table.Span(last)
	work := min(max(end-start, minWork), maxWork)
	if b.work.Acquire(r.ctx, work) == nil {
		defer b.work.Release(work)
	}
	s := &stream{b: b, last: last}
	defer s.end()
	var broken error // what no other span of the run is likely to survive
	for _, f := range r.flights {
		if err := b.ended(r); err != nil {
			broken = b.why(err)
		}
		if broken != nil {
			b.land(f, broken)
			continue
		}
		err := s.decode(r.ctx, f)
		if err != nil {
			err = fmt.Errorf("read span %d of %s: %w", f.span, b.format.Name, b.why(err))
			if !errors.Is(err, b.format.Changed) && !errors.Is(err, b.format.Corrupt) {
				broken = err
			}
		}
		b.land(f, err)
	}
}

// why returns fs.ErrClosed for reads that fail because the Blob is closed.
func (b *Blob) why(err error) error {
	if b.ctx.Err() != nil {
		return fs.ErrClosed
	}
	return err
}

// A stream decodes spans of one read of the source, and takes it up again
// where it broke.
type stream struct {
	b    *Blob
	d    Decoder       // nil before the first bytes are near
	last int           // span
	r    io.ReadCloser // nil if there is none, or it is not where the next span starts
}

// end gives back what the stream has.
func (s *stream) end() {
	s.close()
	if s.d != nil {
		s.b.giveBack(s.d)
	}
}

func (s *stream) close() {
	if s.r != nil {
		s.r.Close()
		s.r = nil
	}
}

// decode decodes the span of f. If the bytes are wrong, the fault may be in a copy
// that a cache keeps, so they are dropped and read again.
func (s *stream) decode(ctx context.Context, f *flight) error {
	err := s.try(ctx, f)
	if !errors.Is(err, s.b.format.Changed) {
		return err
	}
	from, to := s.b.table.Stored(f.span)
	if derr := fetcher.Drop(ctx, s.b.src, from, to-from); derr != nil && !errors.Is(derr, errors.ErrUnsupported) {
		return errors.Join(err, fmt.Errorf("drop cached bytes %d to %d: %w", from, to, derr))
	}
	return s.try(ctx, f)
}

func (s *stream) try(ctx context.Context, f *flight) error {
	err := s.open(ctx, f.span)
	if err == nil {
		err = s.d.Decode(f.span, func(content []byte) error {
			if !f.grow(content) {
				return fmt.Errorf("%w: it was decoded to other bytes before", s.b.format.Changed)
			}
			return nil
		})
	}
	if err != nil {
		s.close()
	}
	return err
}

// open has the stream begin with span i, unless it is there.
func (s *stream) open(ctx context.Context, i int) (err error) {
	if s.r != nil {
		return nil
	}
	from, to := s.b.stored(i, s.last)
	if s.r, err = fetcher.ReadRange(ctx, s.b.src, from, to-from); err != nil {
		return err
	}
	if s.d == nil {
		s.d = s.b.lend()
	}
	return s.d.Reset(untilDone{ctx, s.r}, i)
}

// untilDone reads until ctx is done, so that nothing is decoded in vain for
// long: a source that has the bytes already need not look at ctx.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}
