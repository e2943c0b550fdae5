// SPDX-License-Identifier: Apache-2.0

package http

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// A Blob is a file of a web server, open for reads.
type Blob struct {
	*rangeget.Blob
	o     *Opener
	url   *url.URL
	trail *rangeget.Trail
	pin   rangeget.Pin
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
)

func newBlob(o *Opener, u *url.URL, ref fetcher.Ref) *Blob {
	b := &Blob{o: o, url: u, trail: rangeget.NewTrail(u)}
	b.Blob = rangeget.New(rangeget.Options{
		Digest: ref.Digest, Host: u.Host, Size: ref.Size,
		Get: b.fetch, Distrust: b.trail.Forget,
	})
	return b
}

// fetch asks for bytes [off, off+n) of the file that was read before.
func (b *Blob) fetch(ctx, life context.Context, off, n int64) (*rangeget.Answer, error) {
	a, err := b.trail.Get(ctx, func(ctx context.Context, u *url.URL) (*rangeget.Answer, error) {
		return b.get(ctx, life, u, off, n)
	})
	if err != nil {
		return nil, err
	}
	if err := b.pin.Check(a, b.Size()); err != nil {
		_ = a.Body.Close()
		b.trail.Forget()
		return nil, err
	}
	return a, nil
}

// get sends one request for bytes [off, off+n) to u. Nobody but the host of
// the file's own URL sees the credential.
func (b *Blob) get(ctx, life context.Context, u *url.URL, off, n int64) (*rangeget.Answer, error) {
	w := rangeget.Watch{Header: b.o.opts.HeaderTimeout, Idle: b.o.opts.IdleTimeout, Pace: rangeget.SourcePace}
	return w.Do(ctx, life, u, func(ctx context.Context) (*http.Response, error) {
		req := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{
			"Range":           {fmt.Sprintf("bytes=%d-%d", off, off+n-1)},
			"Accept-Encoding": {"identity"},
			"User-Agent":      {b.o.opts.UserAgent},
		}}).WithContext(ctx)
		// A file that was replaced then comes whole, with its new tag.
		if v := cmp.Or(b.pin.ETag(), b.pin.Modified()); v != "" {
			req.Header.Set("If-Range", v)
		}
		if b.o.opts.Credentials != nil && rangeget.SameHost(u, b.url) {
			cred, err := b.o.opts.Credentials.Lookup(ctx, u.String())
			if err != nil {
				return nil, fmt.Errorf("look up credential: %w", err)
			}
			if cred != (fetcher.Credential{}) {
				req.SetBasicAuth(cred.Username, cred.Password)
			}
		}
		return b.o.transport.RoundTrip(req)
	})
}
