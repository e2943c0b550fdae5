// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// maxRedirects is how many redirects one read follows. Registries use one,
// those behind a gateway two.
const maxRedirects = 5

// A Trail is where the redirects of one URL lead. It is remembered until that
// place refuses, so that a warm read is one request.
type Trail struct {
	url *url.URL
	end atomic.Pointer[url.URL] // nil when it is url, or not known
}

// NewTrail returns the trail that begins at u.
func NewTrail(u *url.URL) *Trail { return &Trail{url: u} }

// Send sends a request to u and returns its answer, whatever the status. It
// shows authorization to nobody but the host it is meant for.
type Send func(ctx context.Context, u *url.URL) (*Answer, error)

// Get asks where the last request was served, and at the trail's beginning
// when there was none or that place refuses. It returns an answer that is
// served.
func (t *Trail) Get(ctx context.Context, send Send) (*Answer, error) {
	if u := t.end.Load(); u != nil {
		a, err := t.follow(ctx, u, send)
		if err == nil || ctx.Err() != nil {
			return a, err
		}
		// Expired, or its host is in trouble: the beginning may name another.
		t.end.CompareAndSwap(u, nil)
		if errors.Is(err, fetcher.ErrTemporary) {
			return nil, err
		}
	}
	return t.follow(ctx, t.url, send)
}

// Forget makes the next request begin where the trail does.
func (t *Trail) Forget() { t.end.Store(nil) }

// follow asks at u, follows redirects and remembers where they led.
func (t *Trail) follow(ctx context.Context, u *url.URL, send Send) (*Answer, error) {
	a, err := send(ctx, u)
	for hops := 0; err == nil; hops++ {
		if a.Served() {
			if *a.URL != *t.url {
				t.end.Store(a.URL)
			}
			return a, nil
		}
		a.Discard() // first, so that its connection serves the next request
		if !a.Redirects() {
			return nil, StatusError(a.Response)
		}
		if u, err = a.Target(hops); err == nil {
			a, err = send(ctx, u)
		}
	}
	return nil, err
}

// Target returns where an answer redirects to, after so many redirects. Its
// errors do not show the URL, which may be signed.
func (a *Answer) Target(hops int) (*url.URL, error) {
	from, location := a.URL, a.Header.Get("Location")
	u, err := from.Parse(location)
	switch {
	case hops >= maxRedirects:
		return nil, fmt.Errorf("%s redirects for the %dth time", from.Host, hops+1)
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || location == "":
		return nil, fmt.Errorf("%s redirects to a location that is no http URL", from.Host)
	case a.Request.URL.Scheme == "https" && u.Scheme == "http":
		return nil, fmt.Errorf("%s redirects from https to plain http at %s", from.Host, u.Host)
	}
	return u, nil
}

// SameHost reports whether what one URL's host may see, that of the other may.
func SameHost(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }
