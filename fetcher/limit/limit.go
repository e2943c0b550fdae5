// SPDX-License-Identifier: Apache-2.0

// Package limit bounds what is asked of a host at the same time, and lets
// reads that somebody waits for go first. A caller says which those are not:
//
//	ctx = limit.With(ctx, limit.Background)
//
// The one thing to know: a class lower than Demand never holds all slots of a
// host, so a read on demand waits for other reads on demand only. Background
// reads also leave the link to those on demand: they pause while there are any.
package limit

import (
	"context"
	"io"
	"io/fs"
	"net/url"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Class is how urgent a read is.
type Class uint8

// The classes, most urgent first.
const (
	Demand     Class = iota // somebody waits for it; the default
	Prefetch                // somebody is likely to want it soon
	Background              // nobody waits; the bandwidth cap is for these
	classes
)

type classKey struct{}

// With returns a context whose reads are of class c.
func With(ctx context.Context, c Class) context.Context {
	return context.WithValue(ctx, classKey{}, min(c, Background))
}

// Of returns the class of reads under ctx.
func Of(ctx context.Context) Class {
	c, _ := ctx.Value(classKey{}).(Class)
	return c
}

// Options bound the requests of an Opener. The zero value is good.
type Options struct {
	// PerHost is how many requests may be in flight at one host. Prefetch and
	// Background together get half of them, Background alone a quarter, but
	// at least one. Default 128; at least 2.
	PerHost int

	// BackgroundRate is how many bytes per second all Background reads
	// together may get; 0 is no bound.
	BackgroundRate int64
}

// An Opener opens blobs whose requests are bounded.
type Opener struct {
	next fetcher.Opener
	*bounds
}

// bounds are what the Openers made of one have in common.
type bounds struct {
	share [classes]int // of the slots of a host: for a class and all below it
	rate  *rate.Limiter

	mu    sync.Mutex // guards hosts
	hosts map[string]*queue
}

var _ fetcher.Opener = (*Opener)(nil)

// New returns an Opener that bounds the requests of next and its blobs.
func New(next fetcher.Opener, opts Options) *Opener {
	n := opts.PerHost
	if n <= 0 {
		// 128: enough for all layers of a large image at once, which are small
		// requests, and about as many streams as HTTP/2 servers allow. What
		// large requests there are at a time, the cache's memory bounds.
		n = 128
	}
	n = max(n, 2)
	o := &Opener{next, &bounds{share: [classes]int{n, max(n/2, 1), max(n/4, 1)}, hosts: map[string]*queue{}}}
	if opts.BackgroundRate > 0 {
		o.rate = rate.NewLimiter(rate.Limit(opts.BackgroundRate), burst)
	}
	return o
}

// Over returns an Opener that bounds the requests of another next Opener, and
// counts them together with those of o.
func (o *Opener) Over(next fetcher.Opener) *Opener { return &Opener{next, o.bounds} }

// burst is how many bytes a Background read may get ahead of its rate, and the
// most it reads at once: 64 KiB are 20 ms of a 25 Mb/s link.
const burst = 64 << 10

// maxYield is how long a Background read pauses before a burst at most, so that
// it gets 256 KiB/s in any case, and no server takes it for dead.
const maxYield = 250 * time.Millisecond

// Open opens ref with the next Opener, which may ask the host for the size.
func (o *Opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	q := o.queue(ref.URL)
	if c := Of(ctx); ref.Size == 0 {
		if err := q.enter(ctx, c, nil); err != nil {
			return nil, err
		}
		defer q.leave(c)
	}
	b, err := o.next.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &Blob{next: b, o: o, q: q, closed: make(chan struct{})}, nil
}

// queue returns the queue of a URL's host.
func (o *Opener) queue(rawURL string) *queue {
	var host string
	if u, err := url.Parse(rawURL); err == nil {
		host = u.Host
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.hosts[host]
	if q == nil {
		q = &queue{share: o.share}
		o.hosts[host] = q
	}
	return q
}

// A Blob is a blob whose requests are bounded.
type Blob struct {
	next   fetcher.Blob
	o      *Opener
	q      *queue
	closed chan struct{}
	once   sync.Once
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
)

// ReadAt holds a slot of the host while it reads from the next blob.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	c := Of(ctx)
	if err := b.pay(ctx, c, len(p)); err != nil {
		return 0, err
	}
	if c == Background {
		if err := b.q.yield(ctx, b.closed); err != nil {
			return 0, err
		}
	}
	if err := b.q.enter(ctx, c, b.closed); err != nil {
		return 0, err
	}
	defer b.q.leave(c)
	return b.next.ReadAt(ctx, p, off)
}

// ReadRange streams from the next blob. The stream holds a slot of the host
// until its end, its first error or Close.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	c := Of(ctx)
	if err := b.q.enter(ctx, c, b.closed); err != nil {
		return nil, err
	}
	rc, err := fetcher.ReadRange(ctx, b.next, off, n)
	if err != nil {
		b.q.leave(c)
		return nil, err
	}
	return &stream{ctx: ctx, class: c, rc: rc, b: b, leave: sync.OnceFunc(func() { b.q.leave(c) }), got: burst}, nil
}

// Size returns the size of the next blob.
func (b *Blob) Size() int64 { return b.next.Size() }

// Close closes the next blob and makes reads that wait fail with fs.ErrClosed.
func (b *Blob) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.next.Close()
}

// pay waits until the rate lets a Background read have n more bytes.
func (b *Blob) pay(ctx context.Context, c Class, n int) error {
	if b.o.rate == nil || c != Background {
		return nil
	}
	for ; n > 0; n -= burst {
		r := b.o.rate.ReserveN(time.Now(), min(n, burst))
		if err := b.sleep(ctx, r.Delay()); err != nil {
			r.Cancel()
			return err
		}
	}
	return nil
}

func (b *Blob) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closed:
		return fs.ErrClosed
	}
}

type stream struct {
	ctx   context.Context
	class Class
	rc    io.ReadCloser
	b     *Blob
	leave func()
	got   int // bytes since it yielded
}

// Read pays for what it read: how much comes is not known before.
func (s *stream) Read(p []byte) (int, error) {
	if s.class == Background {
		p = p[:min(len(p), burst)]
		if err := s.yield(); err != nil {
			s.leave()
			return 0, err
		}
	}
	n, err := s.rc.Read(p)
	s.got += n
	if err == nil {
		err = s.b.pay(s.ctx, s.class, n)
	}
	if err != nil {
		s.leave()
	}
	return n, err
}

// yield pauses before each burst.
func (s *stream) yield() error {
	if s.got < burst {
		return nil
	}
	s.got = 0
	return s.b.q.yield(s.ctx, s.b.closed)
}

func (s *stream) Close() error {
	defer s.leave()
	return s.rc.Close()
}
