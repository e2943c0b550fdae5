// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// Via returns an Opener of the blobs of o whose requests for bytes are sent by
// send, which passes them on to whoever has the bytes. An answer must begin
// within the timeouts' HeaderTimeout, redirects included, and go on at 16 KiB
// per IdleTimeout.
//
// Tokens are those of o. Whether a registry wants one, and from which service,
// only the registry is asked: what comes back through send is not trusted with
// the choice of who is shown a password.
func (o *Opener) Via(send http.RoundTripper, t rangeget.Timeouts) fetcher.Opener {
	return &via{o: o, send: send, timeouts: t.WithDefaults(), questions: map[*access]*question{}}
}

// via is an Opener made by Via.
type via struct {
	o        *Opener
	send     http.RoundTripper
	timeouts rangeget.Timeouts

	mu        sync.Mutex // guards questions
	questions map[*access]*question
}

// Open opens the blob ref names. It sends no request when ref.Size is known.
func (v *via) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := v.open(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", ref.Digest, err)
	}
	return b, nil
}

func (v *via) open(ctx context.Context, ref fetcher.Ref) (*relayed, error) {
	direct, err := v.o.blob(ctx, ref)
	if err != nil {
		return nil, err
	}
	b := &relayed{v: v, direct: direct, trail: rangeget.NewTrail(direct.url)}
	b.Blob = rangeget.New(rangeget.Options{
		Digest: ref.Digest, Host: direct.url.Host, Size: ref.Size,
		Get: b.fetch, Distrust: b.trail.Forget,
	})
	if ref.Size > 0 {
		return b, nil
	}
	if err := b.Probe(ctx); err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// relayed is a blob whose bytes come by way of another host than its own.
type relayed struct {
	*rangeget.Blob
	v      *via
	direct *Blob           // at the registry itself; not read
	trail  *rangeget.Trail // of redirects that were passed on, and trusted no further
}

// fetch asks for bytes [off, off+n).
func (b *relayed) fetch(ctx, life context.Context, off, n int64) (*rangeget.Answer, error) {
	var deadline time.Time
	return b.trail.Get(ctx, func(ctx context.Context, u *url.URL) (*rangeget.Answer, error) {
		var authorization string
		if rangeget.SameHost(u, b.direct.url) {
			var err error
			if authorization, err = b.v.permission(ctx, life, b.direct); err != nil {
				return nil, err
			}
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(b.v.timeouts.HeaderTimeout)
		}
		req, err := b.direct.request(ctx, u, authorization, off, n)
		if err != nil {
			return nil, err
		}
		return b.v.do(ctx, life, time.Until(deadline), req, b.v.send)
	})
}

func (v *via) do(ctx, life context.Context, limit time.Duration, req *http.Request, send http.RoundTripper) (*rangeget.Answer, error) {
	w := rangeget.Watch{Header: limit, Idle: v.timeouts.IdleTimeout, Pace: rangeget.SourcePace}
	return w.Do(ctx, life, req.URL, func(ctx context.Context) (*http.Response, error) {
		return send.RoundTrip(req.WithContext(ctx))
	})
}

// question is whether a registry wants authorization.
type question struct {
	turn  chan struct{} // holds one token while someone asks
	asked time.Time     // the last time; whoever holds the token may look
}

// askAgain is after what time a registry that wanted no authorization, or did
// not answer, is asked again.
const askAgain = time.Minute

func (v *via) question(a *access) *question {
	v.mu.Lock()
	defer v.mu.Unlock()
	q := v.questions[a]
	if q == nil {
		q = &question{turn: make(chan struct{}, 1)}
		v.questions[a] = q
	}
	return q
}

// permission returns the authorization to read b; empty for none. A registry
// that has never asked for one is asked whether it wants one, by one reader
// while the others wait: through an agent they would all be refused.
func (v *via) permission(ctx, life context.Context, b *Blob) (string, error) {
	if authorization, err := b.access.header(ctx, b.host); authorization != "" || err != nil {
		return authorization, err
	}
	q := v.question(b.access)
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if authorization, err := b.access.header(ctx, b.host); authorization != "" || err != nil || time.Since(q.asked) < askAgain {
		return authorization, err
	}
	authorization, err := v.ask(ctx, life, b)
	if ctx.Err() == nil {
		q.asked = time.Now()
	}
	return authorization, err
}

// ask asks the registry itself for a byte of b, and if it wants authorization
// returns it. This costs the round trip that being refused would.
func (v *via) ask(ctx, life context.Context, b *Blob) (string, error) {
	req, err := b.request(ctx, b.url, "", 0, 1)
	if err != nil {
		return "", err
	}
	a, err := v.do(ctx, life, v.timeouts.HeaderTimeout, req, b.host.transport)
	switch {
	case errors.Is(err, fetcher.ErrTemporary):
		return "", nil // it is away; whoever has the bytes may give them all the same
	case err != nil:
		return "", err
	}
	defer a.Discard()
	if !a.Refused() {
		return "", nil
	}
	return b.access.refused(ctx, b.host, "", a.Response)
}
