// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// A Blob is a blob of a registry, open for reads.
type Blob struct {
	*rangeget.Blob
	o      *Opener
	host   *host
	access *access
	url    *url.URL        // at the registry
	trail  *rangeget.Trail // from there to the storage it redirects to
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
)

func newBlob(o *Opener, h *host, l location, size int64) *Blob {
	repo := l.repo(h)
	u := h.base.JoinPath(repo, "blobs", l.digest.String())
	if h.ns != "" {
		u.RawQuery = url.Values{"ns": {h.ns}}.Encode()
	}
	b := &Blob{o: o, host: h, access: o.access(h.repository(repo)), url: u, trail: o.trail(u)}
	b.Blob = rangeget.New(rangeget.Options{
		Digest: l.digest,
		Host:   u.Host,
		Size:   size,
		Get:    b.fetch,
		// The next read may be sent to a better place.
		Distrust: b.trail.Forget,
	})
	return b
}

// fetch asks for bytes [off, off+n) where the last read got them, and at the
// registry when there was none or that place refuses.
func (b *Blob) fetch(ctx, life context.Context, off, n int64) (*rangeget.Answer, error) {
	a, err := b.trail.Get(ctx, func(ctx context.Context, u *url.URL) (*rangeget.Answer, error) {
		get := func(authorization string) (*rangeget.Answer, error) {
			return b.get(ctx, life, u, authorization, off, n)
		}
		if !rangeget.SameHost(u, b.url) {
			return get("")
		}
		return b.authorized(ctx, get)
	})
	if err == nil && !rangeget.SameHost(a.URL, b.url) {
		b.host.storage.Store(&url.URL{Scheme: a.URL.Scheme, Host: a.URL.Host, Path: "/"})
	}
	return a, err
}

// authorized calls get, which asks the registry's own host, with an
// authorization, and meets the host's challenge once.
func (b *Blob) authorized(ctx context.Context, get func(string) (*rangeget.Answer, error)) (*rangeget.Answer, error) {
	authorization, err := b.access.header(ctx, b.host)
	if err != nil {
		return nil, err
	}
	a, err := get(authorization)
	if err != nil || !a.Refused() {
		return a, err
	}
	a.Discard() // first, so that its connection serves the next request
	if authorization, err = b.access.refused(ctx, b.host, authorization, a.Response); err != nil {
		return nil, err
	}
	return get(authorization)
}

// get sends one request for bytes [off, off+n) to u.
func (b *Blob) get(ctx, life context.Context, u *url.URL, authorization string, off, n int64) (*rangeget.Answer, error) {
	req, err := b.request(ctx, u, authorization, off, n)
	if err != nil {
		return nil, err
	}
	return b.o.do(ctx, life, b.host, req)
}

// request returns a request for bytes [off, off+n) to u. Headers of hosts.toml
// go to their own host only.
func (b *Blob) request(ctx context.Context, u *url.URL, authorization string, off, n int64) (*http.Request, error) {
	var header http.Header
	if rangeget.SameHost(u, b.url) {
		header = b.host.header
	}
	req, err := newRequest(ctx, http.MethodGet, u, header)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", b.o.opts.UserAgent)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	req.Header.Set("Accept-Encoding", "identity")
	return req, nil
}
