// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// maxRedirects is how many redirects one read follows. Registries use one,
// those behind a gateway two.
const maxRedirects = 5

// fetch asks for bytes [off, off+n) where the last read got them, and at the
// registry when there was none or that place refuses. The answer's status is
// 200, 206 or 416.
func (b *Blob) fetch(ctx context.Context, off, n int64) (*answer, error) {
	if u := b.redirect.Load(); u != nil {
		a, err := b.ask(ctx, u, off, n)
		if err == nil || ctx.Err() != nil {
			return a, err
		}
		// Expired, or its host is in trouble: the registry may name another.
		b.redirect.CompareAndSwap(u, nil)
		if errors.Is(err, fetcher.ErrTemporary) {
			return nil, err
		}
	}
	return b.ask(ctx, b.url, off, n)
}

// ask asks at u, follows redirects and remembers where they led. Only the
// registry's own host is shown the authorization, and only its challenge is
// met, once.
func (b *Blob) ask(ctx context.Context, u *url.URL, off, n int64) (*answer, error) {
	var authorization string
	var err error
	if sameHost(u, b.url) {
		if authorization, err = b.access.header(ctx, b.host); err != nil {
			return nil, err
		}
	}
	a, err := b.get(ctx, u, authorization, off, n)
	for hops, met := 0, false; err == nil; {
		if a.served() {
			if *a.url != *b.url {
				b.redirect.Store(a.url)
			}
			return a, nil
		}
		a.discard() // first, so that its connection serves the next request
		switch {
		case a.refused() && !met && sameHost(a.url, b.url):
			met = true
			authorization, err = b.access.refused(ctx, b.host, authorization, a.Response)
		case a.redirects():
			if u, err = target(a, hops); err == nil && !sameHost(u, b.url) {
				authorization = ""
			}
			hops++
		default:
			err = statusError(a.Response)
		}
		if err == nil {
			a, err = b.get(ctx, u, authorization, off, n)
		}
	}
	return nil, err
}

func (a *answer) served() bool {
	switch a.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return true
	}
	return false
}

func (a *answer) refused() bool {
	return a.StatusCode == http.StatusUnauthorized || a.StatusCode == http.StatusForbidden
}

func (a *answer) redirects() bool {
	switch a.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// target returns where a redirect leads. Its errors do not show the URL,
// which may be signed.
func target(a *answer, hops int) (*url.URL, error) {
	from, location := a.url, a.Header.Get("Location")
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

func sameHost(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

// get sends one request for bytes [off, off+n) to u. Headers of hosts.toml go
// to their own host only.
func (b *Blob) get(ctx context.Context, u *url.URL, authorization string, off, n int64) (*answer, error) {
	var header http.Header
	if sameHost(u, b.url) {
		header = b.host.header
	}
	req, err := newRequest(ctx, http.MethodGet, u, header)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	req.Header.Set("Accept-Encoding", "identity")
	return b.o.do(ctx, b.life, b.host, req)
}
