// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// A host asks for authorization in the same way for each of its repositories,
// but for the scope. So the first of them is refused once, and for the others a
// token is asked for at once. Where that was a wrong guess, the host is asked
// without one, and says what it wants.

// remember notes how a host asks for authorization.
func (o *Opener) remember(h *host, c auth.Challenge) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.challenges[h.base.String()] = c
}

// recall returns how a host is likely to ask for authorization to read a
// repository, or nil.
func (o *Opener) recall(h *host, repo string) *auth.Challenge {
	o.mu.Lock()
	c, ok := o.challenges[h.base.String()]
	o.mu.Unlock()
	if !ok {
		return nil
	}
	c.Parameters = maps.Clone(c.Parameters)
	if c.Scheme == auth.BearerAuth {
		c.Parameters["scope"] = scope(repo)
	}
	return &c
}

// scope returns the scope of a token that may read the repository whose URL is
// repo, as the distribution specification has it.
func scope(repo string) string {
	u, err := url.Parse(repo)
	if err != nil {
		return ""
	}
	return "repository:" + strings.TrimPrefix(u.Path, "/v2/") + ":pull"
}

// Warm prepares for reads of blobs of one repository, given the URL that those
// of its blobs begin with: afterwards there is a connection to the host that is
// asked first, a token if it wants one, and a connection to where it has sent
// reads to.
func (o *Opener) Warm(ctx context.Context, blobs string) error {
	// Any digest will do.
	l, err := parse(fetcher.Ref{URL: blobs + "/" + digest.FromString("").String()})
	if err != nil {
		return fmt.Errorf("prepare for reads: %w", err)
	}
	hosts, err := o.hosts(ctx, l.namespace, l.plain)
	if err == nil {
		err = o.warm(ctx, hosts[0], l.repo(hosts[0]))
	}
	if err != nil {
		return fmt.Errorf("prepare for reads of %s%s: %w", l.host, l.path, err)
	}
	return nil
}

func (o *Opener) warm(ctx context.Context, h *host, repo string) error {
	var g errgroup.Group
	if u := h.storage.Load(); u != nil {
		g.Go(func() error {
			_, err := o.visit(ctx, h, http.MethodHead, u, nil) // refused or not
			return err
		})
	}
	g.Go(func() error { return o.access(h.repository(repo)).warm(ctx, h) })
	return g.Wait()
}

// visit asks for nothing but the answer's header.
func (o *Opener) visit(ctx context.Context, h *host, method string, u *url.URL, header http.Header) (*rangeget.Answer, error) {
	req, err := newRequest(ctx, method, u, header)
	if err != nil {
		return nil, err
	}
	r, err := o.do(ctx, o.life, h, req)
	if err == nil {
		r.Discard()
	}
	return r, err
}

// warm gets a token if h is known to want one, and asks h whether it does
// otherwise.
func (a *access) warm(ctx context.Context, h *host) error {
	if header, err := a.header(ctx, h); err != nil || header != "" {
		return err
	}
	r, err := a.o.visit(ctx, h, http.MethodGet, h.base.JoinPath("/"), h.header)
	if err != nil {
		return err
	}
	if c := pick(auth.ParseAuthHeader(r.Header)); r.Refused() && c != nil {
		a.o.remember(h, *c)
		_, err = a.header(ctx, h)
	}
	return err
}
