// SPDX-License-Identifier: Apache-2.0

// Package remote reads and writes images in registries.
//
// The one thing to know: what fails for a moment is asked for again, and only
// what is missing of it. A download goes on at the byte where it broke, an
// upload at the byte that the registry says it has got to.
package remote

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// Options of a Client. The zero value reads and writes anonymously.
type Options struct {
	Credentials fetcher.Credentials // nil means anonymous
	HostsDir    string              // as containerd's config_path; empty means none
	TLS         *tls.Config         // where HostsDir has nothing for a host; nil means the system's roots
	PlainHTTP   bool                // speak HTTP to every host
	UserAgent   string              // default "overlaybd"

	// Retry says how long to try. Its default budget is a minute here: a
	// conversion can wait longer than a container that reads its disk.
	Retry retry.Options

	// ChunkSize is what is uploaded in one request, in bytes; 64 MiB if zero.
	ChunkSize int64

	// Stall is how long a request may make no progress; 5 minutes if zero,
	// which is what some registries need to verify a large layer.
	Stall time.Duration
}

// A Client reads and writes repositories of any number of registries.
type Client struct {
	opts  Options
	blobs *registry.Opener
}

// New returns a Client. Its Close releases idle connections.
func New(opts Options) *Client {
	if opts.UserAgent == "" {
		opts.UserAgent = "overlaybd"
	}
	if opts.Retry.Budget == 0 {
		opts.Retry.Budget = time.Minute
	}
	if opts.ChunkSize <= 0 {
		opts.ChunkSize = 64 << 20
	}
	if opts.Stall <= 0 {
		opts.Stall = 5 * time.Minute
	}
	return &Client{opts: opts, blobs: registry.New(registry.Options{
		HostsDir: opts.HostsDir, Credentials: opts.Credentials, UserAgent: opts.UserAgent, TLS: opts.TLS,
	})}
}

// Close releases idle connections.
func (c *Client) Close() error { return c.blobs.Close() }

// A Repository is an image of a registry.
type Repository struct {
	c     *Client
	host  docker.RegistryHost
	repo  string
	name  string // a tag or digest
	scope string // what tokens are asked for

	mu  sync.Mutex // guards top
	top []byte     // the document that Resolve has read
}

var (
	_ store.Source = (*Repository)(nil)
	_ store.Target = (*Repository)(nil)
)

// Source returns the image that ref names, to be read. It sends no request.
func (c *Client) Source(ctx context.Context, ref store.Ref) (*Repository, error) {
	return c.repository(ctx, ref, "pull")
}

// Target returns the image that ref names, to be written. It sends no request.
func (c *Client) Target(ctx context.Context, ref store.Ref) (*Repository, error) {
	if _, err := digest.Parse(ref.Name); err == nil {
		return nil, fmt.Errorf("%s: what is written is named by a tag, not by a digest", ref)
	}
	return c.repository(ctx, ref, "pull,push")
}

func (c *Client) repository(ctx context.Context, ref store.Ref, actions string) (*Repository, error) {
	host, repo, _ := strings.Cut(ref.Location, "/")
	if ref.Kind != store.Registry || repo == "" {
		return nil, fmt.Errorf("%s names no repository of a registry", ref)
	}
	r := &Repository{c: c, repo: repo, name: ref.Name, scope: "repository:" + repo + ":" + actions}
	opts := config.HostOptions{DefaultTLS: c.opts.TLS.Clone(), Credentials: r.credential, UpdateClient: c.tune}
	if c.opts.PlainHTTP {
		opts.DefaultScheme = "http"
	}
	if c.opts.HostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(c.opts.HostsDir)
	}
	hosts, err := config.ConfigureHosts(ctx, opts)(host)
	if err != nil {
		return nil, fmt.Errorf("read host configuration of %s: %w", host, err)
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("host configuration of %s: it names no host", host)
	}
	r.host = hosts[len(hosts)-1] // the origin: mirrors are not pushed to
	return r, nil
}

// tune adapts containerd's client.
func (c *Client) tune(client *http.Client) error {
	if t, ok := client.Transport.(*http.Transport); ok {
		t.DisableCompression = true
		t.ResponseHeaderTimeout = 0 // watched per request
	}
	return nil
}

// credential is what containerd's authorizer asks for.
func (r *Repository) credential(host string) (user, secret string, err error) {
	if r.c.opts.Credentials == nil {
		return "", "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cred, err := r.c.opts.Credentials.Lookup(ctx, "https://"+host+"/v2/"+r.repo)
	if err != nil {
		return "", "", fmt.Errorf("look up credential for %s/%s: %w", host, r.repo, err)
	}
	if cred.IdentityToken != "" {
		return "", cred.IdentityToken, nil
	}
	return cred.Username, cred.Password, nil
}

// url returns a URL of the repository.
func (r *Repository) url(path ...string) *url.URL {
	base := &url.URL{Scheme: r.host.Scheme, Host: r.host.Host, Path: r.host.Path}
	return base.JoinPath(append([]string{r.repo}, path...)...)
}

// Close does nothing: what was pushed and not tagged is the registry's to
// collect.
func (r *Repository) Close() error { return nil }
