// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
)

// parsed returns rpull as it sees args.
func parsed(t *testing.T, args ...string) (got *cli.Command) {
	t.Helper()
	cmd := rpullCommand()
	cmd.Action = func(_ context.Context, c *cli.Command) error {
		got = c
		return nil
	}
	if err := cmd.Run(t.Context(), append([]string{"rpull"}, args...)); err != nil {
		t.Fatal(err)
	}
	return got
}

func resolverOf(t *testing.T, args ...string) *resolver {
	t.Helper()
	r, err := newResolver(t.Context(), parsed(t, args...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	manifestType = ocispec.MediaTypeImageManifest
	manifestText = `{"schemaVersion":2,"config":{},"layers":[]}`
)

// TestOneRequestForTheManifest: what a pull asks a registry for, from the tag
// to the config, and that it is told what containerd would tell it.
func TestOneRequestForTheManifest(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Username: "u", Password: "p"})
	dgst := reg.AddManifest("a/b", "tag", manifestType, []byte(manifestText))
	config := reg.AddBlob("a/b", []byte("config"))
	for _, object := range []string{":tag", "@" + dgst.String(), ":tag@" + dgst.String()} {
		args := []string{"--plain-http", "--user", "u:p", reg.Host() + "/a/b" + object}
		theirs, err := commands.GetResolver(t.Context(), parsed(t, args...))
		if err != nil {
			t.Fatal(err)
		}
		_, want, err := theirs.Resolve(t.Context(), reg.Host()+"/a/b"+object)
		if err != nil {
			t.Fatal(err)
		}
		want.Data = []byte(manifestText)

		reg.ResetLog()
		r := resolverOf(t, args...)
		name, got, err := r.Resolve(t.Context(), reg.Host()+"/a/b"+object)
		if d := cmp.Diff(want, got); err != nil || d != "" || name != reg.Host()+"/a/b"+object {
			t.Errorf("%s: got %s, %v (-want +got):\n%s", object, name, err, d)
		}
		if text := fetch(t, r, name, ocispec.Descriptor{Digest: config.Digest, Size: config.Size}); text != "config" {
			t.Errorf("config %q", text)
		}
		var endpoints []fetchertest.Endpoint
		for _, q := range reg.Log() {
			endpoints = append(endpoints, q.Endpoint)
			if q.Method == http.MethodHead {
				t.Errorf("%s: HEAD %s", object, q.Path)
			}
		}
		// A token by POST, which this service does not know, and so by GET.
		const origin, token = fetchertest.Origin, fetchertest.Token
		if d := cmp.Diff([]fetchertest.Endpoint{origin, token, token, origin, origin}, endpoints); d != "" {
			t.Errorf("%s: requests (-want +got):\n%s", object, d)
		}
	}
}

func fetch(t *testing.T, r remotes.Resolver, name string, desc ocispec.Descriptor) string {
	t.Helper()
	f, err := r.Fetcher(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := f.Fetch(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	text, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestManifestAnswers: what a registry may make of a request for a manifest.
func TestManifestAnswers(t *testing.T) {
	good := digest.FromString(manifestText)
	for _, tc := range []struct {
		name    string
		answer  func(w http.ResponseWriter)
		want    digest.Digest // of the descriptor
		inIt    bool          // the manifest is in it
		failure error
	}{
		{"digest told", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", good.String())
			_, _ = io.WriteString(w, manifestText)
		}, good, true, nil},
		{"digest not told", func(w http.ResponseWriter) { _, _ = io.WriteString(w, manifestText) }, good, true, nil},
		{"another digest", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("other").String())
			_, _ = io.WriteString(w, manifestText)
		}, digest.FromString("other"), false, nil},
		{"another algorithm", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", digest.SHA512.FromString(manifestText).String())
			_, _ = io.WriteString(w, manifestText)
		}, digest.SHA512.FromString(manifestText), true, nil},
		{"not there", func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, "", false, errdefs.ErrNotFound},
		{"too long", func(w http.ResponseWriter) {
			_, _ = w.Write(bytes.Repeat([]byte{' '}, int(docker.MaxManifestSize)+100))
		}, "", false, errdefs.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/a/manifests/tag" || r.Method != http.MethodGet {
					t.Errorf("%s %s was asked", r.Method, r.URL)
				}
				w.Header().Set("Content-Type", manifestType)
				tc.answer(w)
			}))
			t.Cleanup(server.Close)
			ref := strings.TrimPrefix(server.URL, "http://") + "/a:tag"
			_, desc, err := resolverOf(t, "--plain-http", ref).Resolve(t.Context(), ref)
			if tc.failure != nil {
				if !errdefs.IsNotFound(err) {
					t.Errorf("got %v, want %v", err, tc.failure)
				}
				return
			}
			if err != nil || desc.Digest != tc.want || (len(desc.Data) > 0) != tc.inIt || desc.MediaType != manifestType {
				t.Errorf("got %+v, %v", desc, err)
			}
		})
	}
}

// TestRegistryFlags: the flags of containerd's ctr mean what they do there.
func TestRegistryFlags(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{TLS: &tls.Config{}})
	reg.AddManifest("a", "tag", manifestType, []byte(manifestText))
	dir := t.TempDir()
	roots := filepath.Join(dir, "ca.pem")
	hosts := filepath.Join(dir, "example.test", "hosts.toml")
	text := "[host.\"https://" + reg.Host() + "\"]\n  ca = \"" + roots + "\"\n  capabilities = [\"pull\", \"resolve\"]\n"
	if err := os.Mkdir(filepath.Dir(hosts), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{roots: string(reg.CertificatePEM()), hosts: text} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	here := reg.Host() + "/a:tag"
	for _, args := range [][]string{
		{"--skip-verify", here},
		{"-k", "--plain-http", here}, // by TLS first
		{"--tlscacert", roots, here},
		{"--hosts-dir", dir, "example.test/a:tag"},
	} {
		ref := args[len(args)-1]
		if _, desc, err := resolverOf(t, args...).Resolve(t.Context(), ref); err != nil || string(desc.Data) != manifestText {
			t.Errorf("%v: got %+v, %v", args, desc, err)
		}
	}
}
