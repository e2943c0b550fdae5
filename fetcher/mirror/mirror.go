// SPDX-License-Identifier: Apache-2.0

// Package mirror reads a blob wherever it can be had: at places outside its
// registry that Options name, at the mirrors of its registry in their order,
// then at the origin. A place that fails is passed over for a while.
//
// It belongs between retry and limit:
//
//	retry.New(mirror.New(reg, limit.New(reg, …), …), …)
//
// Retry is outside, because another place costs one request where another try
// costs a pause; a stream that breaks is resumed by retry at the next place.
// Limit is inside, because its slots belong to the host that is asked.
//
// The one thing to know: a temporary failure counts against the host for every
// blob, any other one (the mirror has no such repository, or wants another
// credential) for this blob only.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Source knows where a blob can be had. registry.Opener is one.
type Source interface {
	// Mirrors returns refs of the same blob, best first and at least one. The
	// last is the origin.
	Mirrors(ctx context.Context, ref fetcher.Ref) ([]fetcher.Ref, error)
}

// A Place is somewhere outside its registry where a blob can be had.
type Place struct {
	Name   string // what temporary failures are counted against
	Ref    fetcher.Ref
	Opener fetcher.Opener // of Ref
}

// Options of an Opener. The zero value is good.
type Options struct {
	// Elsewhere returns places that are tried before those of the Source, best
	// first. Nil means none.
	Elsewhere func(ref fetcher.Ref) []Place

	// Penalty is how long a place that failed is passed over. Then one read
	// tries it, and the others go on passing it over until that read is back.
	// Default 30 s.
	Penalty time.Duration
}

// An Opener opens blobs at their mirrors and their origin.
type Opener struct {
	src  Source
	next fetcher.Opener
	opts Options

	mu    sync.Mutex // guards hosts
	hosts map[string]*penalty
}

var _ fetcher.Opener = (*Opener)(nil)

// New returns an Opener that opens the refs src returns with next.
func New(src Source, next fetcher.Opener, opts Options) *Opener {
	if opts.Penalty <= 0 {
		opts.Penalty = 30 * time.Second
	}
	return &Opener{src: src, next: next, opts: opts, hosts: map[string]*penalty{}}
}

// Open opens ref at every place. Where ref.Size is unknown, the first place
// that can be asked tells it.
func (o *Opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	places, err := o.places(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(places) == 1 {
		return places[0].open(ctx)
	}
	b := &Blob{size: ref.Size, all: places, places: places}
	if ref.Size == 0 {
		if err := b.probe(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.openAll(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// places returns where ref can be had, best first and the origin last.
func (o *Opener) places(ctx context.Context, ref fetcher.Ref) ([]*place, error) {
	refs, err := o.src.Mirrors(ctx, ref)
	if err != nil {
		return nil, err
	}
	var places []*place
	add := func(r fetcher.Ref, opener fetcher.Opener, host string) {
		own := &penalty{length: o.opts.Penalty}
		places = append(places, &place{ref: r, opener: opener, host: o.host(host), own: own})
	}
	if o.opts.Elsewhere != nil {
		for _, p := range o.opts.Elsewhere(ref) {
			add(p.Ref, p.Opener, "place "+p.Name)
		}
	}
	for _, r := range refs {
		var host string
		if u, err := url.Parse(r.URL); err == nil {
			host = u.Host
		}
		add(r, o.next, host)
	}
	return places, nil
}

// host returns the penalty that all blobs at a host share.
func (o *Opener) host(name string) *penalty {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.hosts[name]
	if p == nil {
		p = &penalty{length: o.opts.Penalty}
		o.hosts[name] = p
	}
	return p
}

// A Blob is a blob at several places.
type Blob struct {
	size int64
	all  []*place // for Close

	mu     sync.Mutex // guards places
	places []*place   // best first; at least the last of all
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
	_ fetcher.Dropper     = (*Blob)(nil)
)

// probe opens the blob at one place, for its size.
func (b *Blob) probe(ctx context.Context) error {
	return b.try(ctx, func(p *place) error {
		blob, err := p.open(ctx)
		if err == nil {
			p.blob, b.size = blob, blob.Size()
		}
		return err
	})
}

// openAll opens the blob wherever it is not open yet, and forgets the places
// where that fails. One is enough; a blob of no bytes needs no second.
func (b *Blob) openAll(ctx context.Context) error {
	var open []*place
	var last error
	for _, p := range b.places {
		if p.blob == nil && b.size > 0 {
			var blob fetcher.Blob
			p.ref.Size = b.size
			if blob, last = p.open(ctx); last == nil {
				p.blob = blob
			}
		}
		if p.blob != nil {
			open = append(open, p)
		}
	}
	b.all, b.places = open, open
	if len(open) == 0 {
		return last
	}
	return nil
}

// errNegative is no place's fault.
var errNegative = errors.New("read blob: negative offset or length")

// ReadAt reads at the first place that works, and after a failure reads what
// is missing at the next.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative
	}
	done := 0
	err := b.try(ctx, func(at *place) error {
		n, err := at.blob.ReadAt(ctx, p[done:], off+int64(done))
		done += n
		return err
	})
	return done, err
}

// ReadRange streams from the first place that works. The stream breaks where
// its place fails.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 {
		return nil, errNegative
	}
	var s *stream
	err := b.try(ctx, func(at *place) error {
		rc, err := fetcher.ReadRange(ctx, at.blob, off, n)
		s = &stream{rc, ctx, at}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Drop says that bytes read were wrong. The best place without a penalty is
// likely to have given them, and is not asked for this blob again. The last
// one stays: there may be nothing wrong with it, and nothing is beyond it.
func (b *Blob) Drop(context.Context, int64, int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for i, p := range b.places[:len(b.places)-1] {
		if !p.own.lasts(now) && !p.host.lasts(now) {
			b.places = slices.Concat(b.places[:i], b.places[i+1:]) // reads may be using the old one
			break
		}
	}
	return nil
}

// Size returns the length of the blob in bytes.
func (b *Blob) Size() int64 { return b.size }

// Close closes the blob at every place.
func (b *Blob) Close() error {
	var errs []error
	for _, p := range b.all {
		if p.blob != nil {
			errs = append(errs, p.blob.Close())
		}
	}
	return errors.Join(errs...)
}

// try calls op for one place after the other until one works: first those
// without a penalty, then, because nothing is left to lose, the others.
func (b *Blob) try(ctx context.Context, op func(*place) error) error {
	b.mu.Lock()
	places := b.places
	b.mu.Unlock()
	errs := make([]error, len(places))
	var later []int
	for i, p := range places {
		if !p.ready() {
			later = append(later, i)
			continue
		}
		if errs[i] = op(p); !p.account(ctx, errs[i]) {
			return errs[i]
		}
	}
	for _, i := range later {
		p := places[i]
		if errs[i] = op(p); !p.account(ctx, errs[i]) {
			return errs[i]
		}
	}
	return verdict(errs)
}

// verdict returns the error for a blob that failed everywhere. It is temporary
// when one of errs is: that place may have the blob.
func verdict(errs []error) error {
	origin := len(errs) - 1
	main := origin
	for i := origin; i >= 0 && !errors.Is(errs[main], fetcher.ErrTemporary); i-- {
		if errors.Is(errs[i], fetcher.ErrTemporary) {
			main = i
		}
	}
	err := errs[main]
	for i, e := range errs {
		if i != main {
			err = fmt.Errorf("%w; elsewhere: %v", err, e) //nolint:errorlint // one class only: the main error's
		}
	}
	return err
}

// place is one of the places where a blob can be had.
type place struct {
	ref    fetcher.Ref
	opener fetcher.Opener
	blob   fetcher.Blob // nil while the blob is being opened
	host   *penalty     // of all blobs of the host
	own    *penalty     // of this blob at this place
}

func (p *place) open(ctx context.Context) (fetcher.Blob, error) { return p.opener.Open(ctx, p.ref) }

// ready reports whether the place is to be tried.
func (p *place) ready() bool {
	now := time.Now()
	if p.own.lasts(now) || p.host.lasts(now) {
		return false
	}
	p.own.renew(now)
	p.host.renew(now)
	return true
}

// account notes err, the outcome of a read, and reports whether it speaks
// against the place, so that another may do better.
func (p *place) account(ctx context.Context, err error) (failed bool) {
	switch {
	case ctx.Err() != nil || errors.Is(err, fs.ErrClosed):
		return false
	case err == nil || errors.Is(err, io.EOF):
		p.own.lift()
		p.host.lift()
		return false
	case errors.Is(err, fetcher.ErrTemporary):
		p.host.impose()
	default:
		p.own.impose()
	}
	return true
}

// penalty is a time during which something is passed over.
type penalty struct {
	length time.Duration

	mu    sync.Mutex // guards until
	until time.Time  // zero for no penalty
}

func (p *penalty) lasts(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Before(p.until)
}

// renew makes a penalty that is over begin again, for all but the one caller
// that is about to find out whether the place works again.
func (p *penalty) renew(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.until.IsZero() {
		p.until = now.Add(p.length)
	}
}

func (p *penalty) impose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = time.Now().Add(p.length)
}

func (p *penalty) lift() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = time.Time{}
}

// stream is a range read at one place.
type stream struct {
	io.ReadCloser
	ctx context.Context
	at  *place
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.at.account(s.ctx, err)
	}
	return n, err
}
