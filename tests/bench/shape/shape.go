// SPDX-License-Identifier: Apache-2.0

// Package shape stands before a registry and makes it as far away as one on a
// network, in user space: round trips, bandwidth, a server that thinks, tokens
// and redirects to storage. It logs every request, and a [Log] says what a
// client made of them.
//
// The first request of a connection costs the round trips of its handshakes,
// each request one more; bodies share one bandwidth in each direction. Where
// there is slow start, a large body costs round trips too, the fewer the more
// its connection has carried lately. Nothing is ever lost.
package shape

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"time"
)

// A Profile is a network.
type Profile struct {
	Name string
	RTT  time.Duration
	Rate int64 // bytes per second, in each direction; 0 is no bound
}

// Profiles are the networks that benchmarks are run on.
var Profiles = []Profile{
	{"lan", time.Millisecond, 0},
	{"wan", 20 * time.Millisecond, 1e9 / 8},
	{"slow", 50 * time.Millisecond, 200e6 / 8},
}

// Options describe a Proxy.
type Options struct {
	Profile
	Upstream *url.URL // of the registry, without /v2

	Delay    time.Duration // before the server answers any request
	TLS      bool          // connections cost the round trip of TLS 1.3, though they are plain
	Token    bool          // the registry wants bearer tokens, which everyone gets
	Redirect bool          // blobs come from a second host, which wants no token
	Ramp     bool          // connections have TCP's slow start

	// Transport reaches the upstream; http.DefaultTransport if nil.
	Transport http.RoundTripper
}

// An Endpoint is one of the services a Proxy consists of.
type Endpoint string

// The endpoints of a Proxy.
const (
	Registry Endpoint = "registry"
	Token    Endpoint = "token"
	Storage  Endpoint = "storage"
)

// A Proxy is a registry, far away.
type Proxy struct {
	opts     Options
	up, down link
	tokens   tokens
	log      recorder
	conns    atomic.Int64
	upstream http.Handler
	storage  string // host and port
	servers  []*http.Server
}

// New returns a Proxy that listens nowhere. Its redirects lead to the host
// storage.
func New(opts Options, storage string) *Proxy {
	p := &Proxy{opts: opts, storage: storage, up: link{rate: opts.Rate}, down: link{rate: opts.Rate}}
	p.upstream = &httputil.ReverseProxy{
		Transport: opts.Transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(opts.Upstream)
			r.Out.Host = r.In.Host // the registry builds upload locations from it
			r.Out.Header.Del("Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { // tell the client, not the terminal
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
	return p
}

// Start serves a Proxy at two addresses. They should differ in the host too:
// HTTP clients do not tell ports apart when they keep a token to themselves.
func Start(ctx context.Context, opts Options, registry, storage string) (*Proxy, error) {
	var lc net.ListenConfig
	front, err := lc.Listen(ctx, "tcp", registry)
	if err != nil {
		return nil, err
	}
	back, err := lc.Listen(ctx, "tcp", storage)
	if err != nil {
		return nil, errors.Join(err, front.Close())
	}
	p := New(opts, back.Addr().String())
	p.serve(front, p.Registry())
	p.serve(back, p.Storage())
	return p, nil
}

func (p *Proxy) serve(l net.Listener, h http.Handler) {
	s := &http.Server{Addr: l.Addr().String(), Handler: h, ConnContext: p.ConnContext, ReadHeaderTimeout: time.Minute}
	p.servers = append(p.servers, s)
	go s.Serve(l) //nolint:errcheck // it ends by Close
}

// Host returns the host and port of a started registry.
func (p *Proxy) Host() string { return p.servers[0].Addr }

// Close stops what Start started, requests under way included.
func (p *Proxy) Close() error {
	var errs []error
	for _, s := range p.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// Log returns the requests since the start or the last Reset, in the order
// they came. One that is under way ends now, as far as the log knows.
func (p *Proxy) Log() Log { return p.log.log() }

// Reset forgets the requests that came so far.
func (p *Proxy) Reset() { p.log.reset() }

// A conn is a connection of a client.
type conn struct {
	id   int64
	used atomic.Bool
	ramp ramp
}

type connKey struct{}

// ConnContext numbers the connections of an http.Server.
func (p *Proxy) ConnContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &conn{id: p.conns.Add(1)})
}

// connection returns that of r, a new one if it is unknown.
func connection(r *http.Request) *conn {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return &conn{}
	}
	return c
}

// trips returns how many round trips pass before the server has answered.
func (o *Options) trips(opens bool) int {
	switch {
	case !opens:
		return 1
	case o.TLS:
		return 3
	}
	return 2
}
