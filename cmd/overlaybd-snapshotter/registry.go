// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/referrer"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
)

// newFinder returns what looks for attached images; nil if it is turned off.
func newFinder(cfg *conf.Config) (*referrer.Finder, error) {
	// On the file system of the snapshots, which get links of the files.
	dir := filepath.Join(cfg.Root, "attached")
	if !cfg.Turbo.Auto {
		return nil, os.RemoveAll(dir) // of one that was killed
	}
	return referrer.New(referrer.Options{Registry: registries{cfg}, Dir: dir, Timeout: time.Duration(cfg.Turbo.Timeout)})
}

// registries are those that the block daemon reads from, as the same
// configuration has them.
type registries struct{ cfg *conf.Config }

// Open returns the repository of image. Its connections serve one search.
func (r registries) Open(ctx context.Context, image string) (referrer.Repository, error) {
	ref, err := reference.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", image, err)
	}
	_, name, _ := strings.Cut(ref.Locator, "/")
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   r.hosts(ctx, name),
		Headers: r.headers(),
	})
	f, err := resolver.Fetcher(ctx, image)
	if err != nil {
		return nil, err
	}
	lister, ok := f.(remotes.ReferrersFetcher)
	if !ok {
		return nil, fmt.Errorf("%T lists no referrers", f)
	}
	return repository{f, lister}, nil
}

func (r registries) headers() http.Header {
	agent := r.cfg.Registry.UserAgent
	if agent == "" {
		agent = "overlaybd/" + version
	}
	return http.Header{"User-Agent": {agent}}
}

// hosts returns the hosts of registries for requests about the repository name.
func (r registries) hosts(ctx context.Context, name string) docker.RegistryHosts {
	known := make(map[string]docker.RegistryHosts)
	for _, scheme := range []string{"http", "https"} {
		opts := config.HostOptions{
			Credentials:   r.credential(ctx, name),
			DefaultScheme: scheme,
			UpdateClient:  r.tune,
		}
		if r.cfg.Registry.HostsDir != "" {
			opts.HostDir = config.HostDirFromRoot(r.cfg.Registry.HostsDir)
		}
		known[scheme] = config.ConfigureHosts(ctx, opts)
	}
	return func(host string) ([]docker.RegistryHost, error) {
		if slices.Contains(r.cfg.Registry.PlainHTTP, host) {
			return known["http"](host)
		}
		return known["https"](host)
	}
}

func (r registries) tune(c *http.Client) error {
	if t, ok := c.Transport.(*http.Transport); ok {
		t.DialContext = (&net.Dialer{Timeout: time.Duration(r.cfg.Registry.DialTimeout)}).DialContext
		t.IdleConnTimeout = time.Duration(r.cfg.Registry.IdleTimeout)
	}
	return nil
}

// credential returns what containerd asks for the credential of a host.
func (r registries) credential(ctx context.Context, name string) func(host string) (string, string, error) {
	all := auth.Chain{auth.File(r.cfg.Registry.CredFile), auth.Docker(r.cfg.Registry.DockerConfig)}
	return func(host string) (user, secret string, err error) {
		cred, err := all.Lookup(ctx, "https://"+host+"/v2/"+name)
		switch {
		case err != nil:
			return "", "", fmt.Errorf("look up credential for %s/%s: %w", host, name, err)
		case cred.IdentityToken != "":
			return "", cred.IdentityToken, nil
		}
		return cred.Username, cred.Password, nil
	}
}

// A repository is one that containerd's resolver opened.
type repository struct {
	fetcher remotes.Fetcher
	lister  remotes.ReferrersFetcher
}

// Fetch streams a manifest or blob.
func (r repository) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Size == 0 { // not known: containerd would read no more than that
		desc.Size = docker.MaxManifestSize
	}
	return r.fetcher.Fetch(ctx, desc)
}

// Referrers asks the registry, or where it keeps no list, reads the index that
// clients keep under a tag.
func (r repository) Referrers(ctx context.Context, subject digest.Digest, types ...string) ([]ocispec.Descriptor, error) {
	all, err := r.lister.FetchReferrers(ctx, subject)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return !slices.Contains(types, d.ArtifactType) }), nil
}
