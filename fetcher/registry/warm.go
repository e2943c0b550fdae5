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

	"github.com/overlaybd-go/overlaybd/fetcher"
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
// asked first, and a token if it wants one.
func (o *Opener) Warm(ctx context.Context, blobs string) error {
	// Any digest will do.
	l, err := parse(fetcher.Ref{URL: blobs + "/" + digest.FromString("").String()})
	if err != nil {
		return fmt.Errorf("prepare for reads: %w", err)
	}
	hosts, err := o.hosts(ctx, l.namespace, l.plain)
	if err == nil {
		err = o.access(hosts[0].repository(l.repo(hosts[0]))).warm(ctx, hosts[0])
	}
	if err != nil {
		return fmt.Errorf("prepare for reads of %s%s: %w", l.host, l.path, err)
	}
	return nil
}

// warm gets a token if h is known to want one, and asks h whether it does
// otherwise.
func (a *access) warm(ctx context.Context, h *host) error {
	if header, err := a.header(ctx, h); err != nil || header != "" {
		return err
	}
	req, err := newRequest(ctx, http.MethodGet, h.base.JoinPath("/"), h.header)
	if err != nil {
		return err
	}
	r, err := a.o.do(ctx, a.o.life, h, req)
	if err != nil {
		return err
	}
	r.Discard()
	if c := pick(auth.ParseAuthHeader(r.Header)); r.Refused() && c != nil {
		a.o.remember(h, *c)
		_, err = a.header(ctx, h)
	}
	return err
}
