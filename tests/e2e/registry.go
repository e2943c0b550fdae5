// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A Registry is Debian's docker-registry behind a proxy on a loopback port
// that counts what it serves, and can make it slow.
type Registry struct {
	Host string // "127.0.0.1:port"

	storage  string       // directory
	stop     func()       // may be called again
	served   atomic.Int64 // bytes of blobs
	requests atomic.Int64 // for blobs
	latency  atomic.Int64 // time.Duration before each answer
	rate     atomic.Pointer[rate.Limiter]
}

// shapeUnit is the burst of a rate limit in bytes: one copy of io.Copy.
const shapeUnit = 32 << 10

// StartRegistry starts an empty registry. Several nodes can share it.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	return OpenRegistry(t, filepath.Join(tempDir(t), "registry"))
}

// OpenRegistry starts a registry of what an earlier one has left in the
// directory storage.
func OpenRegistry(t testing.TB, storage string) *Registry {
	t.Helper()
	program := need.Command(t, "docker-registry")
	dir := tempDir(t)
	socket := filepath.Join(dir, "registry.sock")
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {net: unix, addr: %s, secret: s}\n",
		storage, socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, dir, "registry", []string{"OTEL_TRACES_EXPORTER=none"}, program, "serve", config)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	p.await(t, func() error {
		c, err := dial(t.Context(), "", "")
		if err != nil {
			return err
		}
		return c.Close()
	})
	r := &Registry{storage: storage}
	transport := &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 64}
	server := httptest.NewServer(r.proxy(transport))
	r.stop = func() {
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	}
	t.Cleanup(r.stop)
	r.Host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// Stop makes the registry one that cannot be reached.
func (r *Registry) Stop() { r.stop() }

// Blob returns the path of a blob that the registry has.
func (r *Registry) Blob(d digest.Digest) string {
	return filepath.Join(r.storage, "docker", "registry", "v2", "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}

// Served returns how many bytes of blobs went out since Reset, and in how many
// answers.
func (r *Registry) Served() (bytes, requests int64) {
	return r.served.Load(), r.requests.Load()
}

// Reset sets both counters to zero.
func (r *Registry) Reset() {
	r.served.Store(0)
	r.requests.Store(0)
}

// Shape delays every answer by latency and, where bytesPerSecond is not zero,
// limits the sum of all bodies.
func (r *Registry) Shape(latency time.Duration, bytesPerSecond int) {
	r.latency.Store(int64(latency))
	if bytesPerSecond == 0 {
		r.rate.Store(nil)
		return
	}
	r.rate.Store(rate.NewLimiter(rate.Limit(bytesPerSecond), shapeUnit))
}

func (r *Registry) proxy(transport http.RoundTripper) http.Handler {
	return &httputil.ReverseProxy{
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { // tell the client, not the terminal
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "registry"
			p.Out.Host = p.In.Host // the registry builds upload locations from it
		},
		ModifyResponse: func(resp *http.Response) error {
			delay(resp.Request.Context(), time.Duration(r.latency.Load()))
			if resp.Request.Method == http.MethodGet && strings.Contains(resp.Request.URL.Path, "/blobs/") {
				r.requests.Add(1)
				resp.Body = &countedBody{ReadCloser: resp.Body, ctx: resp.Request.Context(), r: r}
			}
			return nil
		},
	}
}

func delay(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

type countedBody struct {
	io.ReadCloser
	ctx context.Context //nolint:containedctx // a body lives as long as its request
	r   *Registry
}

func (b *countedBody) Read(p []byte) (int, error) {
	limit := b.r.rate.Load()
	if limit != nil {
		p = p[:min(len(p), shapeUnit)]
	}
	n, err := b.ReadCloser.Read(p)
	b.r.served.Add(int64(n))
	if limit != nil && n > 0 {
		if werr := limit.WaitN(b.ctx, n); werr != nil {
			return n, werr
		}
	}
	return n, err
}
