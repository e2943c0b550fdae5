// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// namespace is the hosts that serve one registry: its mirrors in the order of
// hosts.toml, and the origin last.
type namespace struct {
	stamp string // of the configuration it was made from
	hosts []*host
}

// host is a server that speaks the registry protocol.
type host struct {
	base      *url.URL // where repositories are below: https://mirror:5000/v2
	ns        string   // the registry that a mirror stands in for; empty for the origin
	transport http.RoundTripper
	header    http.Header // of hosts.toml

	storage atomic.Pointer[url.URL] // where it sent the last read to, without the path; nil if nowhere
}

// repository returns the URL of a repository of the host. It is what
// credentials are looked up by and what tokens are shared by.
func (h *host) repository(repo string) string { return h.base.String() + "/" + repo }

// host returns the host that l leads to.
func (o *Opener) host(ctx context.Context, l location) (*host, error) {
	if !l.mirror {
		hosts, err := o.hosts(ctx, l.namespace, l.plain)
		if err != nil {
			return nil, err
		}
		return hosts[len(hosts)-1], nil
	}
	for _, plain := range []bool{false, true} {
		hosts, err := o.hosts(ctx, l.namespace, plain)
		if err != nil {
			return nil, err
		}
		for _, h := range hosts {
			if h.base.Host == l.host && strings.HasPrefix(l.path, h.base.Path+"/") && (h.base.Scheme == "http") == l.plain {
				return h, nil
			}
		}
	}
	return nil, fmt.Errorf("%s is no mirror of %s", l.host, l.namespace)
}

// repo returns the repository of l at h, without the part of the path that is
// the host's own.
func (l location) repo(h *host) string {
	prefix := "/v2"
	if l.mirror {
		prefix = h.base.Path
	}
	return strings.TrimPrefix(l.path, prefix+"/")
}

// Name returns the repository that ref is of, as docker.io/library/redis, and
// the digest that its URL names.
func Name(ref fetcher.Ref) (string, digest.Digest, error) {
	l, err := parse(ref)
	if err != nil {
		return "", "", fmt.Errorf("find repository of blob %s: %w", ref.Digest, err)
	}
	return l.namespace + strings.TrimPrefix(l.path, "/v2"), l.digest, nil
}

// Mirrors returns where the blob of ref can be read, best first: at the
// mirrors of its registry's hosts.toml, then at its origin. Open accepts each.
func (o *Opener) Mirrors(ctx context.Context, ref fetcher.Ref) ([]fetcher.Ref, error) {
	l, err := parse(ref)
	if err != nil {
		return nil, fmt.Errorf("find mirrors of blob %s: %w", ref.Digest, err)
	}
	if l.mirror {
		return []fetcher.Ref{ref}, nil
	}
	hosts, err := o.hosts(ctx, l.namespace, l.plain)
	if err != nil {
		return nil, fmt.Errorf("find mirrors of blob %s: %w", ref.Digest, err)
	}
	refs := make([]fetcher.Ref, 0, len(hosts))
	for _, h := range hosts[:len(hosts)-1] {
		m := ref
		m.URL = h.repository(l.repo(h)) + "/blobs/" + l.digest.String() + "?ns=" + url.QueryEscape(l.namespace)
		refs = append(refs, m)
	}
	return append(refs, ref), nil
}

// hosts returns the hosts of a registry, at least one. They are loaded anew
// when the files of its configuration have changed.
func (o *Opener) hosts(ctx context.Context, name string, plain bool) ([]*host, error) {
	plain = plain || slices.Contains(o.opts.PlainHTTP, name)
	key := fmt.Sprint(name, " plain=", plain)
	stamp, err := o.stamp(name)
	if err != nil {
		return nil, fmt.Errorf("read host configuration of %s: %w", name, err)
	}
	o.mu.Lock()
	s := o.spaces[key]
	o.mu.Unlock()
	if s != nil && s.stamp == stamp {
		return s.hosts, nil
	}
	fresh, err := o.load(ctx, name, plain)
	if err != nil {
		return nil, fmt.Errorf("read host configuration of %s: %w", name, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.spaces[key]; s != nil && s.stamp == stamp {
		return s.hosts, nil // another Open was faster; share its connections
	}
	fresh.stamp = stamp
	o.spaces[key] = fresh
	return fresh.hosts, nil
}

// stamp returns what changes when a file of a registry's host configuration
// does. Certificates that hosts.toml keeps elsewhere are not part of it.
func (o *Opener) stamp(name string) (string, error) {
	if o.opts.HostsDir == "" {
		return "", nil
	}
	dir, err := config.HostDirFromRoot(o.opts.HostsDir)(name)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range entries {
		if fi, err := os.Stat(dir + "/" + e.Name()); err == nil {
			fmt.Fprintf(&b, "%s/%s %d %d\n", dir, e.Name(), fi.Size(), fi.ModTime().UnixNano())
		}
	}
	return b.String(), nil
}

// load reads the host configuration of a registry as containerd does.
func (o *Opener) load(ctx context.Context, name string, plain bool) (*namespace, error) {
	s := new(namespace)
	opts := config.HostOptions{UpdateClient: o.tune, DefaultTLS: o.opts.TLS.Clone()}
	if plain {
		opts.DefaultScheme = "http"
	}
	if o.opts.HostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(o.opts.HostsDir)
	}
	found, err := config.ConfigureHosts(ctx, opts)(name)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if f.Capabilities.Has(docker.HostCapabilityPull) {
			h := &host{
				base:      &url.URL{Scheme: f.Scheme, Host: f.Host, Path: strings.TrimSuffix(f.Path, "/")},
				transport: f.Client.Transport,
				header:    f.Header,
			}
			if f.Host != name && (name != "docker.io" || f.Host != "registry-1.docker.io") {
				h.ns = name
			}
			s.hosts = append(s.hosts, h)
		}
	}
	if len(s.hosts) == 0 {
		return nil, errors.New("no host may be pulled from")
	}
	return s, nil
}

// tune adapts containerd's client, made for whole blobs, to many small reads.
func (o *Opener) tune(c *http.Client) error {
	t, ok := c.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("transport is a %T", c.Transport)
	}
	rangeget.Tune(t, o.opts.DialTimeout)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.transports = append(o.transports, t)
	return nil
}
