// SPDX-License-Identifier: Apache-2.0

// Package fetchertest holds what tests and benchmarks of blob readers share:
// [Run], the conformance suite every fetcher.Blob passes, and [Registry], an
// OCI registry inside the test process whose latency, bandwidth and faults
// are scripted and which logs every range it was asked for.
package fetchertest

import (
	"context"
	"crypto/tls"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Auth is what a Registry wants to see of its clients.
type Auth int

// The ways to ask for authorization. A Bearer registry without a Username
// gives its tokens to everyone.
const (
	Anonymous Auth = iota
	Basic
	Bearer
)

// Options describe a Registry. The zero value is an open registry over plain
// HTTP that answers at once and serves blobs itself.
type Options struct {
	Auth     Auth
	Username string
	Password string
	TokenTTL time.Duration // the expires_in of tokens; 0 leaves it out

	// Redirect makes blob requests answer 307 with a signed URL of a second
	// host, which refuses requests that carry an Authorization header, as
	// object stores do.
	Redirect bool

	// RTT is added to every request, and once more to the first of every
	// connection. BytesPerSecond bounds all bodies together; 0 is no bound.
	RTT            time.Duration
	BytesPerSecond int64

	// TLS serves HTTPS with this configuration; one without a certificate
	// gets the certificate of net/http/httptest.
	TLS *tls.Config
}

// An Endpoint is one of the servers a Registry consists of.
type Endpoint string

// The endpoints of a Registry.
const (
	Origin  Endpoint = "origin"  // /v2/
	Token   Endpoint = "token"   // the token service
	Storage Endpoint = "storage" // where Redirect leads
)

// A Request is one request a Registry received.
type Request struct {
	Endpoint      Endpoint
	Method        string
	Path          string
	Query         url.Values
	Off, N        int64 // the range asked for in bytes; 0, -1 without a Range header
	Authorization string
	Header        map[string][]string
	Status        int // the status answered; 0 while or when there is none
}

// A Registry is a read-only OCI registry on a loopback port.
type Registry struct {
	opts    Options
	origin  *httptest.Server
	storage *httptest.Server
	pace    pacer
	done    chan struct{} // closed when the test ends; frees stalled requests

	mu        sync.Mutex // guards what follows
	blobs     map[digest.Digest][]byte
	manifests map[string]manifest // by repo:reference
	repos     map[string]bool     // repo@digest pairs that exist
	log       []*Request
	arrived   *sync.Cond // signalled when log grows
	faults    []*Fault
	down      bool
	tokens    map[string]string // token to the scope it was given for
	issued    int               // tokens given so far
	epoch     int               // signed URLs of earlier epochs have expired
	release   chan struct{}     // closed by Release
}

type manifest struct {
	mediaType string
	content   []byte
}

// NewRegistry starts a registry that stops when the test ends.
func NewRegistry(t testing.TB, opts Options) *Registry {
	t.Helper()
	r := &Registry{
		opts:      opts,
		pace:      pacer{rate: opts.BytesPerSecond},
		done:      make(chan struct{}),
		blobs:     map[digest.Digest][]byte{},
		manifests: map[string]manifest{},
		repos:     map[string]bool{},
		tokens:    map[string]string{},
		release:   make(chan struct{}),
	}
	r.arrived = sync.NewCond(&r.mu)
	r.origin = r.start(r.serveOrigin)
	r.storage = r.start(r.serveStorage)
	t.Cleanup(r.close)
	return r
}

func (r *Registry) close() {
	close(r.done)
	for _, s := range []*httptest.Server{r.origin, r.storage} {
		s.CloseClientConnections()
		s.Close()
	}
}

// URL returns the scheme and host of the registry: http://127.0.0.1:1234.
func (r *Registry) URL() string { return r.origin.URL }

// Host returns the host and port of the registry.
func (r *Registry) Host() string { return hostOf(r.origin.URL) }

// StorageHost returns the host and port signed URLs lead to.
func (r *Registry) StorageHost() string { return hostOf(r.storage.URL) }

// CertificatePEM returns the certificate that clients of a TLS registry have
// to trust.
func (r *Registry) CertificatePEM() []byte { return certificatePEM(r.origin.Certificate()) }

func hostOf(u string) string {
	_, host, _ := strings.Cut(u, "://")
	return host
}

// AddBlob stores content in repo and returns where it is. The registry keeps
// content: the caller must not change it.
func (r *Registry) AddBlob(repo string, content []byte) fetcher.Ref {
	dgst := digest.FromBytes(content)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[dgst] = content
	r.repos[repo+"@"+dgst.String()] = true
	return fetcher.Ref{
		URL:    r.URL() + "/v2/" + repo + "/blobs/" + dgst.String(),
		Digest: dgst,
		Size:   int64(len(content)),
	}
}

// AddManifest stores a manifest in repo under its digest and, where tag is not
// empty, under tag.
func (r *Registry) AddManifest(repo, tag, mediaType string, content []byte) digest.Digest {
	dgst := digest.FromBytes(content)
	r.mu.Lock()
	defer r.mu.Unlock()
	m := manifest{mediaType, content}
	r.manifests[repo+":"+dgst.String()] = m
	if tag != "" {
		r.manifests[repo+":"+tag] = m
	}
	return dgst
}

// Log returns the requests received so far in the order they arrived in.
func (r *Registry) Log() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	log := make([]Request, len(r.log))
	for i, q := range r.log {
		log[i] = *q
	}
	return log
}

// Await returns when e has received n requests or more since the start or the
// last ResetLog, or when ctx is done.
func (r *Registry) Await(ctx context.Context, e Endpoint, n int) error {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.arrived.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.received(e) < n && ctx.Err() == nil {
		r.arrived.Wait()
	}
	return ctx.Err()
}

// received returns how many requests e has received. r.mu is held.
func (r *Registry) received(e Endpoint) int {
	n := 0
	for _, q := range r.log {
		if q.Endpoint == e {
			n++
		}
	}
	return n
}

// ResetLog forgets the requests received so far.
func (r *Registry) ResetLog() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
}

// SetDown breaks every connection and resets new ones, until it is called
// with false.
func (r *Registry) SetDown(down bool) {
	r.mu.Lock()
	r.down = down
	r.mu.Unlock()
	if down {
		r.origin.CloseClientConnections()
		r.storage.CloseClientConnections()
	}
}

// ExpireTokens makes every token given so far worthless.
func (r *Registry) ExpireTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// ExpireRedirects makes every signed URL given so far answer 403.
func (r *Registry) ExpireRedirects() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
}
