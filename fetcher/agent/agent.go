// SPDX-License-Identifier: Apache-2.0

// Package agent sends requests for blobs by way of a peer-to-peer agent, a
// server near the node that may have their bytes from other nodes: one of the
// kind that the reference implementation knows, or Dragonfly's dfdaemon.
//
// The one thing to know: an agent is trusted with what it is shown, which is
// what the registry would be shown, but neither with its answers nor with being
// there. It is one of the places of package fetcher/mirror, and whatever is
// wrong with it the next place is asked.
package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// A Kind is how an agent wants to be asked for a URL.
type Kind string

// The kinds of agents.
const (
	// Prefix agents are asked for the URL as a path below their own, query
	// included: http://agent/key/https://registry.example/v2/…. So are
	// dadi-p2proxy and all that the reference can be configured for.
	Prefix Kind = "prefix"

	// Mirror agents are asked as the registry would be, and told its address
	// in a header: Dragonfly's registry mirror.
	Mirror Kind = "mirror"

	// Proxy agents are HTTP proxies: Dragonfly's.
	Proxy Kind = "proxy"
)

// Options describe an Agent.
type Options struct {
	Kind Kind
	URL  string // of the agent

	// CAFile has the certificates, as PEM, of a Proxy that looks into https.
	// The system's are trusted as well.
	CAFile string

	rangeget.Timeouts // DialTimeout alone
}

// An Agent is an http.RoundTripper that sends requests to an agent.
type Agent struct {
	kind      Kind
	base      *url.URL
	transport *http.Transport
}

var _ http.RoundTripper = (*Agent)(nil)

// New returns an Agent. It sends no request. Its Close releases idle
// connections.
func New(opts Options) (*Agent, error) {
	base, err := url.Parse(strings.TrimSuffix(opts.URL, "/"))
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.User != nil {
		return nil, errors.New("the agent's URL is not http://host:port/path") // it may hold a password
	}
	t := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck // nobody replaces it
	rangeget.Tune(t, opts.WithDefaults().DialTimeout)
	t.Proxy = nil // an agent is near
	switch opts.Kind {
	case Prefix, Mirror:
	case Proxy:
		t.Proxy = http.ProxyURL(base)
	default:
		return nil, fmt.Errorf("kind of agent %q is not known", opts.Kind)
	}
	if t.TLSClientConfig, err = trust(opts.CAFile); err != nil {
		return nil, fmt.Errorf("read certificates of the agent: %w", err)
	}
	return &Agent{kind: opts.Kind, base: base, transport: t}, nil
}

// trust returns a configuration that trusts a file's certificates, too.
func trust(file string) (*tls.Config, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // the default, as in http.Transport
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("there is none in %s", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// RoundTrip sends req to the agent. The answer's Request is what was sent.
func (a *Agent) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if err := a.address(req); err != nil {
		return nil, err
	}
	answer, err := a.transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("by way of agent %s: %w", a.base.Host, err)
	}
	return answer, nil
}

// address makes req what the agent wants to see.
func (a *Agent) address(req *http.Request) error {
	switch a.kind {
	case Prefix:
		return a.redirect(req, "/"+req.URL.String())
	case Mirror:
		req.Header.Set("X-Dragonfly-Registry", req.URL.Scheme+"://"+req.URL.Host)
		prioritize(req)
		return a.redirect(req, req.URL.RequestURI())
	default:
		prioritize(req)
		return nil
	}
}

// redirect sends req to the agent, to the path and query that come after the
// agent's own path. What is escaped in them stays so.
func (a *Agent) redirect(req *http.Request, rest string) error {
	u, err := url.Parse(a.prefix() + rest[1:])
	if err != nil {
		return fmt.Errorf("the URL of %s cannot be put behind that of agent %s", req.URL.Host, a.base.Host)
	}
	req.URL, req.Host = u, u.Host
	return nil
}

// prioritize tells Dragonfly how urgent a request is. In its scheduler's
// levels, at 6 seed peers fetch what nobody has yet, at 3 the peer does that
// asks; what is below may not be fetched from the origin. Nydus has the same
// two.
func prioritize(req *http.Request) {
	priority := "3"
	if limit.Of(req.Context()) == limit.Demand {
		priority = "6"
	}
	req.Header.Set("X-Dragonfly-Use-P2P", "true")
	req.Header.Set("X-Dragonfly-Priority", priority)
}

// Ref returns a ref of the same blob that names the agent: whoever counts by
// hosts counts its requests as the agent's. Opener knows such refs.
func (a *Agent) Ref(ref fetcher.Ref) fetcher.Ref {
	ref.URL = a.prefix() + ref.URL
	return ref
}

// Opener returns an Opener of refs that Ref made, whose blobs next opens under
// their own URLs. It is to send requests by way of a.
func (a *Agent) Opener(next fetcher.Opener) fetcher.Opener { return opener{a, next} }

type opener struct {
	a    *Agent
	next fetcher.Opener
}

func (o opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	u, ok := strings.CutPrefix(ref.URL, o.a.prefix())
	if !ok {
		return nil, fmt.Errorf("open blob %s: its URL is not behind that of the agent", ref.Digest)
	}
	ref.URL = u
	return o.next.Open(ctx, ref)
}

func (a *Agent) prefix() string {
	return a.base.Scheme + "://" + a.base.Host + a.base.EscapedPath() + "/"
}

// Host returns the host and port of the agent.
func (a *Agent) Host() string { return a.base.Host }

// Close releases idle connections.
func (a *Agent) Close() error {
	a.transport.CloseIdleConnections()
	return nil
}
