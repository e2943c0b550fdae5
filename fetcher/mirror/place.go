// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// place is one of the places where a blob can be had.
type place struct {
	ref    fetcher.Ref
	opener fetcher.Opener
	blob   fetcher.Blob // nil while the blob is being opened
	host   *host
	own    penalty // of this blob at this place
}

// host is what all blobs at one host have in common.
type host struct {
	penalty
	pace
}

func newHost(length time.Duration) *host {
	return &host{penalty: penalty{length: length}, pace: newPace()}
}

func (p *place) open(ctx context.Context) (fetcher.Blob, error) { return p.opener.Open(ctx, p.ref) }

// free reports whether nothing speaks against the place.
func (p *place) free(now time.Time) bool { return !p.own.lasts(now) && !p.host.lasts(now) }

// ready reports whether the place is to be tried.
func (p *place) ready() bool {
	now := time.Now()
	if !p.free(now) {
		return false
	}
	p.own.renew(now)
	p.host.renew(now)
	return true
}

// lift ends the penalties of a place that works.
func (p *place) lift() {
	p.own.lift()
	p.host.lift()
}

// blame imposes the penalty for err, which a read at the place failed with. It
// reports whether the host wants to be left alone.
func (p *place) blame(err error) (throttled bool) {
	after := asked(err)
	switch {
	case after > 0:
		p.host.rest(after)
	case errors.Is(err, fetcher.ErrTemporary):
		p.host.impose()
	default:
		p.own.impose()
	}
	return after > 0
}

// resting returns an error while the place's host wants to be left alone.
func (p *place) resting() error {
	left := p.host.rests(time.Now())
	if left <= 0 {
		return nil
	}
	return &fetcher.RetryAfterError{After: left, Err: fmt.Errorf("it asked to be left alone for another %v", left.Round(time.Millisecond))}
}

// penalty is a time during which something is passed over.
type penalty struct {
	length time.Duration

	mu    sync.Mutex // guards what follows
	until time.Time  // zero for no penalty
	alone time.Time  // until when not even the last hope is asked
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

// maxRest bounds how long a host is left alone at its own request: less than a
// device's patience, whatever the host says.
const maxRest = 2 * time.Minute

// rest imposes a penalty of a length that the host has asked for.
func (p *penalty) rest(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alone = time.Now().Add(min(d, maxRest))
	p.until = p.alone
}

// rests returns for how long the host is still to be left alone.
func (p *penalty) rests(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alone.Sub(now)
}

// lift ends the penalty of what works. While a host is left alone, what works
// is a request from before.
func (p *penalty) lift() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !time.Now().Before(p.alone) {
		p.until, p.alone = time.Time{}, time.Time{}
	}
}
