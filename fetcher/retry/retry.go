// SPDX-License-Identifier: Apache-2.0

// Package retry repeats what failed with a fetcher.ErrTemporary, for seconds
// rather than minutes. Waiting out an outage is for whoever knows how long a
// disk may hang; nothing in between retries.
//
// The one thing to know: bytes that have arrived are never asked for again. A
// ReadAt asks for the rest, a stream goes on at the byte where it broke.
package retry

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Options say how long and how often to try. The zero value is good.
type Options struct {
	// Budget bounds the time from the first failure to the last retry, counted
	// anew whenever bytes have arrived. Default 8 s.
	Budget time.Duration

	// First and Longest are the pauses the backoff starts at and doubles up
	// to; each is shortened by a random part of up to a half. Default 50 ms
	// and 2 s.
	First, Longest time.Duration
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&o.Budget, 8*time.Second)
	set(&o.First, 50*time.Millisecond)
	set(&o.Longest, 2*time.Second)
	return o
}

// Do calls f until it succeeds, or fails with what may not pass or not within
// the budget. It returns f's last error.
func Do(ctx context.Context, opts Options, f func() error) error {
	for t := opts.withDefaults().start(nil); ; {
		err := f()
		if err == nil {
			return nil
		}
		if err = t.pause(ctx, err); err != nil {
			return err
		}
	}
}

// An Opener opens blobs whose reads are retried.
type Opener struct {
	next fetcher.Opener
	opts Options
}

var _ fetcher.Opener = (*Opener)(nil)

// New returns an Opener that retries what next and its blobs do.
func New(next fetcher.Opener, opts Options) *Opener {
	return &Opener{next, opts.withDefaults()}
}

// Open opens ref with the next Opener.
func (o *Opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	for p := o.opts.start(nil); ; {
		b, err := o.next.Open(ctx, ref)
		if err == nil {
			return &Blob{next: b, opts: o.opts, closed: make(chan struct{})}, nil
		}
		if err = p.pause(ctx, err); err != nil {
			return nil, err
		}
	}
}

// A Blob is a blob whose reads are retried.
type Blob struct {
	next   fetcher.Blob
	opts   Options
	closed chan struct{}
	once   sync.Once
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
	_ fetcher.Dropper     = (*Blob)(nil)
)

// ReadAt reads from the next blob, and after a temporary failure reads what is
// still missing.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	done, err := b.next.ReadAt(ctx, p, off)
	for t := b.opts.start(b.closed); err != nil; {
		if err = t.pause(ctx, err); err != nil {
			return done, err
		}
		var n int
		n, err = b.next.ReadAt(ctx, p[done:], off+int64(done))
		done += n
		t.progress(n)
	}
	return done, nil
}

// ReadRange streams from the next blob, and after a temporary failure goes on
// with a new stream of what is still missing.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s := &stream{ctx: ctx, b: b, off: off, left: n, tries: b.opts.start(b.closed)}
	if err := s.connect(); err != nil {
		return nil, err
	}
	return s, nil
}

// Drop drops from the next blob.
func (b *Blob) Drop(ctx context.Context, off, n int64) error {
	return fetcher.Drop(ctx, b.next, off, n)
}

// Size returns the size of the next blob.
func (b *Blob) Size() int64 { return b.next.Size() }

// Close closes the next blob and ends pauses with fs.ErrClosed.
func (b *Blob) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.next.Close()
}

// stream is a range that is read by as many streams as it takes.
type stream struct {
	ctx       context.Context
	b         *Blob
	off, left int64
	tries     tries
	rc        io.ReadCloser // nil once err is set
	broken    error         // what the present rc failed with, for now
	err       error         // what ended the stream
}

// connect opens a stream of what is left.
func (s *stream) connect() error {
	for {
		rc, err := fetcher.ReadRange(s.ctx, s.b.next, s.off, s.left)
		if err == nil {
			s.rc = rc
			return nil
		}
		if err = s.tries.pause(s.ctx, err); err != nil {
			return err
		}
	}
}

func (s *stream) Read(p []byte) (int, error) {
	for s.err == nil {
		if s.broken != nil {
			s.reconnect()
			continue
		}
		n, err := s.rc.Read(p)
		s.off += int64(n)
		s.left -= int64(n)
		s.tries.progress(n)
		if retryable(err) && s.left == 0 {
			err = io.EOF // it broke where it would have ended
		}
		if !retryable(err) {
			return n, err
		}
		if s.broken = err; n > 0 {
			return n, nil
		}
	}
	return 0, s.err
}

// reconnect replaces the stream that broke.
func (s *stream) reconnect() {
	_ = s.rc.Close()
	s.rc = nil
	s.err, s.broken = s.tries.pause(s.ctx, s.broken), nil
	if s.err == nil {
		s.err = s.connect()
	}
}

func (s *stream) Close() error {
	if s.rc == nil {
		return nil
	}
	return s.rc.Close()
}

func retryable(err error) bool { return errors.Is(err, fetcher.ErrTemporary) }

// tries counts what one operation may still do.
type tries struct {
	opts   Options
	closed <-chan struct{} // nil for never

	failing time.Time // since when; zero while all is well
	next    time.Duration
}

func (o Options) start(closed <-chan struct{}) tries {
	return tries{opts: o, closed: closed}
}

// progress notes that n bytes have arrived.
func (t *tries) progress(n int) {
	if n > 0 {
		t.failing, t.next = time.Time{}, 0
	}
}

// pause waits before the next try. It returns err itself when there is to be
// none, because err may not pass, or will not within the budget.
func (t *tries) pause(ctx context.Context, err error) error {
	if !retryable(err) {
		return err
	}
	if t.failing.IsZero() {
		t.failing, t.next = time.Now(), t.opts.First
	}
	d := t.next - rand.N(t.next/2+1)
	t.next = min(2*t.next, t.opts.Longest)
	var asked *fetcher.RetryAfterError
	if errors.As(err, &asked) && asked.After > d {
		// Everyone was told the same time: do not come back all at once.
		d = asked.After + rand.N(t.opts.First)
	}
	if time.Since(t.failing)+d > t.opts.Budget {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.closed:
		return fs.ErrClosed
	}
}
