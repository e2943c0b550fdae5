// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// access is the permission to read one repository of one host. However many
// readers need it at the same time, it is asked for once.
type access struct {
	o    *Opener
	repo string // the repository's URL

	mu        sync.Mutex      // guards what follows
	challenge *auth.Challenge // the last one; nil until a request was refused
	guessed   bool            // it was another repository's
	misled    bool            // that did not do here
	grant     grant
	fetching  *flight
}

// grant is what the Authorization header is set to.
type grant struct {
	header string
	renew  time.Time // ask for the next grant from here on, while this one is used
	expire time.Time // do not use it any more; zero means never
}

func (g grant) valid(now time.Time) bool {
	return g.header != "" && (g.expire.IsZero() || now.Before(g.expire))
}

func (g grant) stale(now time.Time) bool { return !g.expire.IsZero() && !now.Before(g.renew) }

// flight is a grant being fetched.
type flight struct {
	done  chan struct{} // closed when grant and err are set
	grant grant
	err   error
}

// access returns the access to a repository, which blobs share.
func (o *Opener) access(repo string) *access {
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.grants[repo]
	if a == nil {
		a = &access{o: o, repo: repo}
		o.grants[repo] = a
	}
	return a
}

// header returns the Authorization header for the next request: empty before
// the host has asked for one, for whatever repository.
func (a *access) header(ctx context.Context, h *host) (string, error) {
	a.mu.Lock()
	now := time.Now()
	if a.challenge == nil && !a.misled {
		a.challenge = a.o.recall(h, a.repo)
		a.guessed = a.challenge != nil
	}
	if a.challenge == nil || a.grant.valid(now) {
		defer a.mu.Unlock()
		if a.grant.stale(now) {
			a.fetch(h)
		}
		return a.grant.header, nil
	}
	f, guessed := a.fetch(h), a.guessed
	a.mu.Unlock()
	header, err := f.wait(ctx)
	if err != nil && guessed && ctx.Err() == nil {
		a.doubt()
		return "", nil // the host will tell
	}
	return header, err
}

// doubt drops a challenge that was guessed.
func (a *access) doubt() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.guessed {
		a.challenge, a.guessed, a.misled = nil, false, true
	}
}

// refused takes note that the host answered 401 or 403 to a request with the
// header used, and returns the header to try instead.
func (a *access) refused(ctx context.Context, h *host, used string, r *http.Response) (string, error) {
	a.mu.Lock()
	if c := pick(auth.ParseAuthHeader(r.Header)); c != nil {
		if a.guessed {
			a.guessed, a.fetching = false, nil // which meets another challenge
		}
		a.challenge = c
		if s := c.Parameters["scope"]; s == "" || s == scope(a.repo) {
			a.o.remember(h, *c)
		}
	}
	if a.challenge == nil {
		a.mu.Unlock()
		return "", rangeget.StatusError(r)
	}
	if a.grant.header == used {
		a.grant = grant{}
	}
	if a.grant.valid(time.Now()) { // another reader was refused before
		defer a.mu.Unlock()
		return a.grant.header, nil
	}
	f := a.fetch(h)
	a.mu.Unlock()
	return f.wait(ctx)
}

// pick returns the first challenge that can be met; bearer ones come first.
func pick(challenges []auth.Challenge) *auth.Challenge {
	for _, c := range challenges {
		if c.Scheme == auth.BearerAuth || c.Scheme == auth.BasicAuth {
			return &c
		}
	}
	return nil
}

// fetch returns the fetch under way, or starts one. It outlives the reader
// that started it, because others wait for it too. a.mu is held.
func (a *access) fetch(h *host) *flight {
	if a.fetching != nil {
		return a.fetching
	}
	f := &flight{done: make(chan struct{})}
	a.fetching = f
	challenge := *a.challenge
	if !a.o.spawn(func() { a.land(f, h, challenge) }) {
		f.err = fs.ErrClosed
		close(f.done)
		a.fetching = nil
	}
	return f
}

// land fetches what f is waited for.
func (a *access) land(f *flight, h *host, c auth.Challenge) {
	f.grant, f.err = a.o.meet(h, a.repo, c)
	a.mu.Lock()
	defer a.mu.Unlock()
	defer close(f.done)
	if a.fetching == f {
		a.fetching = nil
	}
	if f.err == nil {
		a.grant = f.grant
		return
	}
	// 5 s: a token service in trouble is not asked at every read while the
	// present token still does.
	a.grant.renew = time.Now().Add(5 * time.Second)
}

func (f *flight) wait(ctx context.Context) (string, error) {
	select {
	case <-f.done:
		return f.grant.header, f.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// meet meets a challenge with the credential of the repository.
func (o *Opener) meet(h *host, repo string, c auth.Challenge) (grant, error) {
	ctx, cancel := context.WithTimeout(o.life, o.opts.HeaderTimeout+o.opts.IdleTimeout)
	defer cancel()
	g, err := o.grant(ctx, h, repo, c)
	switch {
	case o.life.Err() != nil:
		return grant{}, fs.ErrClosed
	case ctx.Err() != nil: // not the reader's deadline, so not shown as one
		return grant{}, rangeget.Temporary("get authorization for %s: no answer in time", repo)
	}
	return g, err
}

func (o *Opener) grant(ctx context.Context, h *host, repo string, c auth.Challenge) (grant, error) {
	var cred fetcher.Credential
	if o.opts.Credentials != nil {
		var err error
		if cred, err = o.opts.Credentials.Lookup(ctx, repo); err != nil {
			// Temporary, because nobody has said no yet: the file may be
			// half written or the helper's service restarting.
			return grant{}, rangeget.Temporary("look up credential for %s: %w", repo, err)
		}
	}
	if c.Scheme == auth.BearerAuth {
		return o.token(ctx, h, c, cred)
	}
	if cred.Username == "" && cred.Password == "" {
		return grant{}, fmt.Errorf("%w: there is no credential for %s", fetcher.ErrUnauthorized, repo)
	}
	return grant{header: basic(cred)}, nil
}
