// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/referrer"
)

// A testRegistry serves manifests, and lists what refers to them as registries
// do, or as clients do where they do not.
type testRegistry struct {
	manifests map[string][]byte // by digest or tag
	list      []byte            // nil: there is no such API
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if user, password, _ := req.BasicAuth(); user != "me" || password != "secret" {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/team/app/")
	body, ok := r.manifests[strings.TrimPrefix(path, "manifests/")]
	if strings.HasPrefix(path, "referrers/") && r.list != nil {
		body, ok = r.list, true
	}
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	_, _ = w.Write(body)
}

// TestRegistries: what refers to an image is found by either way, with the
// credentials of the configuration.
func TestRegistries(t *testing.T) {
	subject := digest.FromString("subject")
	listed, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{
		{ArtifactType: referrer.TypeTurbo, Digest: digest.FromString("turbo"), Size: 5},
		{ArtifactType: "application/vnd.signature", Digest: digest.FromString("signature"), Size: 9},
	}})
	if err != nil {
		t.Fatal(err)
	}
	fallback := "sha256-" + subject.Encoded()
	for name, tc := range map[string]struct {
		reg  *testRegistry
		want int
	}{
		"API":      {&testRegistry{manifests: map[string][]byte{}, list: listed}, 1},
		"fallback": {&testRegistry{manifests: map[string][]byte{fallback: listed}}, 1},
		"none":     {&testRegistry{manifests: map[string][]byte{}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tc.reg.manifests[digest.FromString("turbo").String()] = []byte("turbo")
			srv := httptest.NewServer(tc.reg)
			defer srv.Close()
			host := strings.TrimPrefix(srv.URL, "http://")
			cfg := conf.Default()
			cfg.Registry.PlainHTTP = []string{host}
			cfg.Registry.HostsDir, cfg.Registry.DockerConfig = "", ""
			cfg.Registry.CredFile = filepath.Join(t.TempDir(), "cred.json")
			cred := fmt.Sprintf(`{"auths":{"%s/team":{"username":"me","password":"secret"}}}`, host)
			if err := os.WriteFile(cfg.Registry.CredFile, []byte(cred), 0o600); err != nil {
				t.Fatal(err)
			}
			repo, err := registries{cfg}.Open(t.Context(), host+"/team/app:1")
			if err != nil {
				t.Fatal(err)
			}
			all, err := repo.Referrers(t.Context(), subject, referrer.TypeTurbo, referrer.TypeNative)
			if err != nil || len(all) != tc.want {
				t.Fatalf("got %v, %v", all, err)
			}
			if tc.want == 0 {
				return
			}
			for _, size := range []int64{0, 5} { // not known, and known
				r, err := repo.Fetch(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: all[0].Digest, Size: size})
				if err != nil {
					t.Fatal(err)
				}
				if text, err := io.ReadAll(r); err != nil || string(text) != "turbo" {
					t.Errorf("got %q, %v", text, err)
				}
				_ = r.Close()
			}
		})
	}
}

func TestFinderIsAsked(t *testing.T) {
	cfg := conf.Default()
	cfg.Root = t.TempDir()
	if f, err := newFinder(cfg); f != nil || err != nil {
		t.Errorf("turned off: got %v, %v", f, err)
	}
	cfg.Turbo.Auto = true
	f, err := newFinder(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
