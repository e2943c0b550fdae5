// SPDX-License-Identifier: Apache-2.0

package spans

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
// reader should hold who wants the content up to end. The caller leaves each when
// done with it.
func (b *Blob) join(first, last int, end int64) ([]*flight, error) {
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
		need, size := b.need(i, end)
		f := b.flights[i]
		if f == nil {
			f = b.recent.flight(i)
		}
		if f != nil && !f.want(need) { // it has come as far as it will
			f = nil
		}
		if f != nil || i > first && b.apart(i) {
			fresh = b.launch(fresh)
		}
		if f == nil {
			f = &flight{span: i, progress: progress{need: need, size: size}}
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

// need returns how much of span i, which has size bytes, is to be decoded for a
// reader of content up to end.
func (b *Blob) need(i int, end int64) (need, size int) {
	start, stop := b.table.Span(i)
	size = int(stop - start)
	if !b.parts {
		return size, size
	}
	part := int64(b.format.Part)
	return int(min((max(end-start, 0)+part-1)/part*part, stop-start)), size
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
	s := &stream{b: b, last: r.flights[len(r.flights)-1]}
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
