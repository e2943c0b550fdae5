// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

// A resolver is containerd's, but that it needs one request for a manifest:
// where containerd asks whether there is one, and fetches it later, this gets
// it at once, and hands it on in the descriptor.
type resolver struct {
	remotes.Resolver
	manifest manifest
}

// newResolver returns a resolver for the flags of containerd's ctr.
func newResolver(ctx context.Context, cmd *cli.Command) (*resolver, error) {
	r := new(resolver)
	hosts, err := registryHosts(ctx, cmd, func(next http.RoundTripper) http.RoundTripper { return eager{next, &r.manifest} })
	if err != nil {
		return nil, err
	}
	r.Resolver = docker.NewResolver(docker.ResolverOptions{Hosts: hosts})
	return r, nil
}

// Resolve returns the descriptor of ref's manifest, with the manifest in it
// where that is what the descriptor says.
func (r *resolver) Resolve(ctx context.Context, ref string) (name string, desc ocispec.Descriptor, err error) {
	name, desc, err = r.Resolver.Resolve(ctx, ref)
	if err == nil && r.manifest.is(desc) {
		desc.Data = r.manifest.text()
	}
	return name, desc, err
}

// manifest is the last that was got.
type manifest struct {
	mu   sync.Mutex // guards last
	last []byte
}

func (m *manifest) set(text []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = text
}

func (m *manifest) text() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// is reports whether the manifest is what desc describes.
func (m *manifest) is(desc ocispec.Descriptor) bool {
	text := m.text()
	if int64(len(text)) != desc.Size || desc.Digest.Validate() != nil {
		return false
	}
	return desc.Digest.Algorithm().FromBytes(text) == desc.Digest
}

// An eager transport gets a manifest where it is asked whether there is one.
type eager struct {
	next     http.RoundTripper
	manifest *manifest
}

// RoundTrip answers a HEAD for a manifest by what a GET gets.
func (e eager) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodHead || !strings.Contains(r.URL.Path, "/manifests/") {
		return e.next.RoundTrip(r)
	}
	get := r.Clone(r.Context())
	get.Method = http.MethodGet
	a, err := e.next.RoundTrip(get)
	if err != nil {
		return nil, err
	}
	// All of it, that of an error too, so that the connection is free for the
	// next request. What is longer is refused by its length.
	text, err := io.ReadAll(io.LimitReader(a.Body, docker.MaxManifestSize+1))
	_ = a.Body.Close()
	if err != nil {
		return nil, err
	}
	a.Request, a.Body, a.ContentLength = r, io.NopCloser(bytes.NewReader(text)), int64(len(text))
	if a.StatusCode == http.StatusOK {
		e.manifest.set(text)
		if a.Header.Get("Docker-Content-Digest") == "" {
			a.Header.Set("Docker-Content-Digest", digest.FromBytes(text).String())
		}
	}
	return a, nil
}
