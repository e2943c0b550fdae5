// SPDX-License-Identifier: Apache-2.0

package gzidx

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
	run  *run
	done chan struct{} // closed once data and err are there
	data []byte
	err  error
}

// A run decodes spans that follow each other, of one read of the source. It is
// abandoned when nobody waits for its flights any more.
type run struct {
	flights []*flight
	waiting int // references to flights; guarded by Blob.mu
	ctx     context.Context
	cancel  context.CancelFunc
}

const (
	// maxRun is how much one read of the source may decode to, in bytes,
	// beyond a single span: what a reader of a long range holds in memory.
	maxRun = 8 << 20

	// maxRuns is how many runs of a Blob may be under way at the same time;
	// the others wait. Most of the time a run waits for bytes: with few of
	// them, a read that somebody waits for would wait for others to arrive.
	maxRuns = 32

	// maxIdle is how many decoders a Blob keeps, of some 100 KB each.
	maxIdle = 2
)

// join returns flights of the spans from first on, to last or as many as one
// reader should hold. The caller leaves each when done with it.
func (b *Blob) join(first, last int) ([]*flight, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fs.ErrClosed
	}
	start, _ := b.x.span(first)
	var joined, fresh []*flight
	for i := first; i <= last; i++ {
		if _, end := b.x.span(i); i > first && end-start > maxRun {
			break
		}
		f := b.flights[i]
		if f == nil {
			f = b.recent.flight(i)
		}
		if f == nil {
			f = &flight{span: i, done: make(chan struct{})}
			b.flights[i] = f
			fresh = append(fresh, f)
		} else {
			b.launch(fresh)
			fresh = nil
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

// launch starts a run of flights. b.mu is held.
func (b *Blob) launch(flights []*flight) {
	if len(flights) == 0 {
		return
	}
	r := &run{flights: flights}
	r.ctx, r.cancel = context.WithCancel(b.ctx)
	for _, f := range flights {
		f.run = r
	}
	b.running.Add(1)
	go b.fly(r)
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
		if r.waiting--; r.waiting > 0 {
			continue
		}
		r.cancel()
		for _, f := range r.flights {
			b.forget(f)
		}
	}
}

// forget makes the next reader of a span decode it anew, unless it is kept.
func (b *Blob) forget(f *flight) {
	if b.flights[f.span] == f {
		delete(b.flights, f.span)
	}
}

// wait returns the content of the span.
func (f *flight) wait(ctx context.Context) ([]byte, error) {
	select {
	case <-f.done:
		return f.data, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// land ends a flight.
func (b *Blob) land(f *flight, data []byte, err error) {
	f.data, f.err = data, err
	b.mu.Lock()
	b.forget(f)
	if err == nil {
		b.recent.keep(f.span, data)
	}
	b.mu.Unlock()
	close(f.done)
}

// fly decodes the flights of r.
func (b *Blob) fly(r *run) {
	defer b.running.Done()
	defer r.cancel()
	select {
	case b.runs <- struct{}{}:
		defer func() { <-b.runs }()
	case <-r.ctx.Done():
	}
	d := b.lend()
	defer b.giveBack(d)
	s := &stream{b: b, d: d, last: r.flights[len(r.flights)-1].span}
	defer s.close()
	var broken error // what no other span of the run is likely to survive
	for _, f := range r.flights {
		if err := r.ctx.Err(); err != nil {
			broken = b.why(err)
		}
		if broken != nil {
			b.land(f, nil, broken)
			continue
		}
		data, err := s.span(r.ctx, f.span)
		if err != nil {
			err = fmt.Errorf("read span %d of gzip file: %w", f.span, b.why(err))
			if !errors.Is(err, ErrChanged) && !errors.Is(err, ErrCorrupt) {
				broken = err
			}
		}
		b.land(f, data, err)
	}
}

// lend returns a decoder.
func (b *Blob) lend() *decoder {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.idle)
	if n == 0 {
		return &decoder{x: b.x}
	}
	d := b.idle[n-1]
	b.idle = b.idle[:n-1]
	return d
}

// giveBack makes d idle.
func (b *Blob) giveBack(d *decoder) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.idle) < maxIdle {
		b.idle = append(b.idle, d)
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
	d    *decoder
	last int           // span
	r    io.ReadCloser // nil if there is none, or it is not where the next span starts
}

func (s *stream) close() {
	if s.r != nil {
		s.r.Close()
		s.r = nil
	}
}

// span returns the content of span i. If the bytes are wrong, the fault may be
// in a copy that a cache keeps, so they are dropped and read again.
func (s *stream) span(ctx context.Context, i int) ([]byte, error) {
	data, err := s.try(ctx, i)
	if !errors.Is(err, ErrChanged) {
		return data, err
	}
	from, to := s.b.x.stored(i)
	if derr := fetcher.Drop(ctx, s.b.src, from, to-from); derr != nil && !errors.Is(derr, errors.ErrUnsupported) {
		return nil, errors.Join(err, fmt.Errorf("drop cached bytes %d to %d: %w", from, to, derr))
	}
	return s.try(ctx, i)
}

func (s *stream) try(ctx context.Context, i int) (data []byte, err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.r == nil {
		from, _ := s.b.x.stored(i)
		_, to := s.b.x.stored(s.last)
		if s.r, err = fetcher.ReadRange(ctx, s.b.src, from, to-from); err != nil {
			return nil, err
		}
		if s.d.f == nil {
			s.d.f = newInflater()
		}
		if err := s.d.reset(untilDone{ctx, s.r}, i); err != nil {
			return nil, err
		}
	}
	return s.d.span(i)
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
