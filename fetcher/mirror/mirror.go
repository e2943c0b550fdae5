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
// credential) for this blob only. A host that says when it wants to be asked
// again is not asked before.
//
// A place that is slower than it usually is gets a competitor; see race.
package mirror

import (
	"context"
	"net/url"
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

	count counters

	mu    sync.Mutex // guards hosts
	hosts map[string]*host
}

var _ fetcher.Opener = (*Opener)(nil)

// New returns an Opener that opens the refs src returns with next.
func New(src Source, next fetcher.Opener, opts Options) *Opener {
	if opts.Penalty <= 0 {
		opts.Penalty = 30 * time.Second
	}
	return &Opener{src: src, next: next, opts: opts, hosts: map[string]*host{}}
}

// Open opens ref at every place. Where ref.Size is unknown, the first place
// that can be asked tells it.
func (o *Opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	places, err := o.places(ctx, ref)
	if err != nil {
		return nil, err
	}
	b := &Blob{o: o, size: ref.Size, all: places, places: places}
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
		places = append(places, &place{ref: r, opener: opener, host: o.host(host), own: penalty{length: o.opts.Penalty}})
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

// host returns what all blobs at a host share.
func (o *Opener) host(name string) *host {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.hosts[name]
	if h == nil {
		h = newHost(o.opts.Penalty)
		o.hosts[name] = h
	}
	return h
}
