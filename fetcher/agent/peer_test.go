// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher/agent"
)

// key is the path below which a peer of kind Prefix expects URLs.
const key = "/dadip2p"

// relayedBy is the header by which a registry tells what a peer has asked for.
const relayedBy = "X-Relayed-By"

// peer is an agent that has nothing itself: it asks where it is told to, as
// agents do for what no other node has. Its answers can be scripted.
type peer struct {
	*httptest.Server
	kind   agent.Kind
	client http.Client

	mu     sync.Mutex // guards what follows
	answer http.HandlerFunc
	log    []call
}

// call is a request that a peer got.
type call struct {
	target string // the URL that it is to fetch
	header http.Header
}

func newPeer(t *testing.T, kind agent.Kind) *peer {
	t.Helper()
	p := &peer{kind: kind}
	p.client.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		req.Header.Del("Authorization") // the registry is another host of the same name
		return nil
	}
	p.Server = httptest.NewServer(p)
	t.Cleanup(func() {
		p.client.CloseIdleConnections()
		p.CloseClientConnections()
		p.Close()
	})
	return p
}

// URL is what the peer is configured by.
func (p *peer) url() string {
	if p.kind == agent.Prefix {
		return p.URL + key
	}
	return p.URL
}

// passRedirectsOn makes the peer leave redirects to its client.
func (p *peer) passRedirectsOn() {
	p.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
}

// answerWith makes the peer answer every request with h; nil ends that.
func (p *peer) answerWith(h http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = h
}

// calls returns what the peer was asked for since the last time.
func (p *peer) calls() []call {
	p.mu.Lock()
	defer p.mu.Unlock()
	log := p.log
	p.log = nil
	return log
}

func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	target := p.target(r)
	p.mu.Lock()
	p.log = append(p.log, call{target, maps.Clone(r.Header)})
	answer := p.answer
	p.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
	case r.Method == http.MethodConnect:
		tunnel(w, r)
	default:
		p.relay(w, r, target)
	}
}

// target returns the URL that r is about.
func (p *peer) target(r *http.Request) string {
	switch p.kind {
	case agent.Prefix:
		return strings.TrimPrefix(r.RequestURI, key+"/")
	case agent.Mirror:
		return r.Header.Get("X-Dragonfly-Registry") + r.RequestURI
	}
	return r.RequestURI
}

func (p *peer) relay(w http.ResponseWriter, r *http.Request, target string) {
	u, err := url.Parse(target)
	if err != nil || !u.IsAbs() {
		http.Error(w, "that is no URL: "+target, http.StatusBadRequest)
		return
	}
	req := r.Clone(r.Context())
	req.URL, req.Host, req.RequestURI = u, u.Host, ""
	req.Header.Set(relayedBy, "peer")
	answer, err := p.client.Do(req)
	if err != nil {
		http.Error(w, "no answer", http.StatusBadGateway)
		return
	}
	defer func() { _ = answer.Body.Close() }()
	maps.Copy(w.Header(), answer.Header)
	w.WriteHeader(answer.StatusCode)
	_, _ = io.Copy(w, answer.Body)
}

// tunnel connects a client of an HTTP proxy with the host that it names.
func tunnel(w http.ResponseWriter, r *http.Request) {
	far, err := new(net.Dialer).DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, "no answer", http.StatusBadGateway)
		return
	}
	defer func() { _ = far.Close() }()
	near, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = near.Close() }()
	_, _ = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(far, near)
		_ = far.Close()
	}()
	_, _ = io.Copy(near, far)
}
