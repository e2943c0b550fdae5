// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/layout"
	"github.com/overlaybd-go/overlaybd/image/convert/remote"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// repository opens an image of a registry.
func repository(t *testing.T, ref string) *remote.Repository {
	t.Helper()
	parsed, err := store.ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	c := remote.New(remote.Options{})
	t.Cleanup(func() { _ = c.Close() })
	r, err := c.Target(t.Context(), parsed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRegistries(t *testing.T) {
	a, b := e2e.StartRegistry(t), e2e.StartRegistry(t)
	ref := a.Push(t, makeImage(t, amd64, three...), "lib/app", "v1")
	for _, args := range [][]string{
		{"-r", a.Host + "/lib/app", "-i", "v1", "-o", "v1-block"},
		{"--source", ref, "--target", b.Host + "/other/name:v1-block"},
	} {
		s := mustConvert(t, args...)
		r := repository(t, s.Target)
		top := resolve(t, r)
		if top.Digest != s.Digest || top.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("%s has %+v, want %s", s.Target, top, s.Digest)
		}
		var m ocispec.Manifest
		read(t, r, top, &m)
		checkDisk(t, disk(t, r, m))
	}
}

// TestIndex converts an index of two platforms, an index within it and an
// attestation.
func TestIndex(t *testing.T) {
	reg := e2e.StartRegistry(t)
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	images := []e2e.Image{makeImage(t, amd64, three...), makeImage(t, arm, three[0], three[2])}
	merged, err := e2e.Merge(filepath.Join(t.TempDir(), "index"), images...)
	if err != nil {
		t.Fatal(err)
	}
	top := nest(t, merged)
	s := mustConvert(t, "--source", "oci:"+merged.Dir+":nested", "--target", reg.Host+"/multi:block", "--referrer")
	r := repository(t, s.Target)
	var index, inner ocispec.Index
	read(t, r, resolve(t, r), &index)
	if len(index.Manifests) != 1 || index.Subject == nil || index.Subject.Digest != top || index.ArtifactType != convert.Native.ArtifactType() {
		t.Fatalf("outer index %+v", index)
	}
	read(t, r, index.Manifests[0], &inner)
	if len(inner.Manifests) != 2 || inner.Subject == nil || inner.Subject.Digest != merged.Top.Digest {
		t.Fatalf("inner index %+v", inner)
	}
	for i, d := range inner.Manifests {
		var m ocispec.Manifest
		read(t, r, d, &m)
		if d.Platform.Architecture != images[i].Top.Platform.Architecture || len(m.Layers) != len(images[i].Layers) ||
			m.ArtifactType != convert.Native.ArtifactType() || m.Subject.Digest != images[i].Top.Digest {
			t.Errorf("manifest %+v", m)
		}
	}
	one := mustConvert(t, "--source", "oci:"+merged.Dir+":nested", "--no-upload", "--platform", "linux/arm64")
	if len(one.Layers) != 2 || one.Layers[0].Platform != "linux/arm64" && one.Layers[0].Platform != "linux/arm64/v8" {
		t.Errorf("one platform: %+v", one.Layers)
	}
}

// nest adds an index of the layout's index and an attestation, which it calls
// nested, and returns its digest.
func nest(t *testing.T, i e2e.Image) digest.Digest {
	t.Helper()
	w, err := layout.Create(i.Dir, "nested")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	attestation := push(t, w, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: push(t, w, ocispec.MediaTypeImageConfig, map[string]string{}),
	})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	inner := i.Top
	inner.Platform = nil
	top := push(t, w, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{attestation, inner},
	})
	if err := w.Tag(t.Context(), top); err != nil {
		t.Fatal(err)
	}
	return top.Digest
}

// push stores a document in JSON.
func push(t *testing.T, w store.Target, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	if err := w.Push(t.Context(), desc, text, nil); err != nil {
		t.Fatal(err)
	}
	return desc
}

// TestMediaTypes: Docker's are kept unless OCI's are asked for.
func TestMediaTypes(t *testing.T) {
	dir := dockerTypes(t, makeImage(t, amd64, three...))
	for _, tt := range []struct{ flag, manifest, config, layer string }{
		{"--oci=false", images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2Config, images.MediaTypeDockerSchema2Layer},
		{"--oci", ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayer},
	} {
		out := filepath.Join(t.TempDir(), "out")
		s := mustConvert(t, "--source", "oci:"+dir+":docker", "--target", "oci:"+out, tt.flag)
		r := openLayout(t, out, "")
		var m ocispec.Manifest
		read(t, r, resolve(t, r), &m)
		if s.MediaType != tt.manifest || m.MediaType != tt.manifest || m.Config.MediaType != tt.config || m.Layers[0].MediaType != tt.layer {
			t.Errorf("%s: %s, %s, %s, %s", tt.flag, s.MediaType, m.MediaType, m.Config.MediaType, m.Layers[0].MediaType)
		}
	}
}

// dockerTypes adds the image as docker would have written it, called docker.
func dockerTypes(t *testing.T, i e2e.Image) string {
	t.Helper()
	w, err := layout.Create(i.Dir, "docker")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var m ocispec.Manifest
	read(t, w, i.Top, &m)
	m.MediaType, m.Config.MediaType = images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2Config
	for n := range m.Layers {
		m.Layers[n].MediaType = images.MediaTypeDockerSchema2LayerGzip
	}
	if err := w.Tag(t.Context(), push(t, w, m.MediaType, m)); err != nil {
		t.Fatal(err)
	}
	return i.Dir
}

// A spoiler answers a request, or has next, the registry, do it.
type spoiler func(w http.ResponseWriter, r *http.Request, next http.Handler)

// front starts a proxy before a registry that spoils some of what it does.
func front(t *testing.T, back *e2e.Registry, spoil spoiler) (host string) {
	t.Helper()
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", back.Host, p.In.Host
	}, ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		spoil(w, r, proxy)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return strings.TrimPrefix(server.URL, "http://")
}

// A cutter sends so much, and breaks off.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if _, err := c.ResponseWriter.Write(p[:n]); err != nil || n < len(p) {
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

// TestBrokenTransfers: a registry that breaks off downloads and uploads is
// asked again.
func TestBrokenTransfers(t *testing.T) {
	back := e2e.StartRegistry(t)
	ref := back.Push(t, makeImage(t, amd64, three...), "lib/app", "v1")
	want := mustConvert(t, "--source", ref, "--no-upload").Digest
	var mu sync.Mutex
	broken := map[string]int{}
	once := func(key string) bool {
		mu.Lock()
		defer mu.Unlock()
		broken[key]++
		return broken[key] == 1
	}
	host := front(t, back, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case isDownload(r) && once(r.URL.Path):
			next.ServeHTTP(&cutter{w, 100}, r)
		case isUpload(r) && once("put"):
			_, _ = io.CopyN(io.Discard, r.Body, 100)
			panic(http.ErrAbortHandler)
		case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") && once("manifest"):
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			next.ServeHTTP(w, r)
		}
	})
	s := mustConvert(t, "-r", host+"/lib/app", "-i", "v1", "-o", "block")
	if s.Digest != want {
		t.Errorf("made %s, want %s", s.Digest, want)
	}
	if len(broken) < 5 {
		t.Errorf("only these were broken: %v", broken)
	}
}

// TestDedup: layers and manifests that were converted once are found again,
// in the same repository and in another, and converted anew where their blobs
// are gone.
func TestDedup(t *testing.T) {
	reg := e2e.StartRegistry(t)
	reg.Push(t, makeImage(t, amd64, three[:2]...), "lib/base", "v1")
	reg.Push(t, makeImage(t, amd64, three...), "lib/app", "v1")
	db := filepath.Join(t.TempDir(), "db")
	to := func(repo, tag string) []string {
		return []string{"--source", reg.Host + "/" + repo + ":v1", "--target", reg.Host + "/out/" + repo + ":" + tag, "--db-str", db}
	}
	reused := func(s converted) (n int) {
		for _, l := range s.Layers {
			if l.Reused {
				n++
			}
		}
		return n
	}
	if s := mustConvert(t, to("lib/base", "a")...); reused(s) != 0 || len(s.Layers) != 2 {
		t.Errorf("the first conversion: %+v", s)
	}
	// The layers of the base are mounted, the third is built on them.
	app := mustConvert(t, to("lib/app", "a")...)
	if reused(app) != 2 || len(app.Layers) != 3 {
		t.Errorf("on known layers: %+v", app)
	}
	if plain := mustConvert(t, "--source", reg.Host+"/lib/app:v1", "--no-upload"); plain.Digest != app.Digest {
		t.Errorf("with known layers %s, without %s", app.Digest, plain.Digest)
	}
	// The manifest is known: no layer is looked at.
	if s := mustConvert(t, to("lib/app", "b")...); s.Digest != app.Digest || len(s.Layers) != 0 {
		t.Errorf("a known manifest: %+v", s)
	}
	if out, _, _ := convertor(t.Context(), t, to("lib/app", "b")...); !strings.Contains(out, "\nnative ext4: converted before, found again\nin ") {
		t.Errorf("a known manifest: %q", out)
	}
	// Other options, other layers.
	if s := mustConvert(t, append(to("lib/app", "c"), "--bs", "16")...); reused(s) != 0 || s.Digest == app.Digest {
		t.Errorf("with other options: %+v", s)
	}
	// Another registry knows nothing of this one's.
	other := e2e.StartRegistry(t)
	if s := mustConvert(t, "--source", reg.Host+"/lib/app:v1", "--target", other.Host+"/app:a", "--db-str", db); reused(s) != 0 || s.Digest != app.Digest {
		t.Errorf("in another registry: %+v", s)
	}
}

// TestDedupOfLostBlobs: what the database knows and the registry does not is
// converted again.
func TestDedupOfLostBlobs(t *testing.T) {
	reg := e2e.StartRegistry(t)
	reg.Push(t, makeImage(t, amd64, three...), "lib/app", "v1")
	lost := false
	host := front(t, reg, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if lost && r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	args := []string{"-r", host + "/lib/app", "-i", "v1", "-o", "block", "--db-str", filepath.Join(t.TempDir(), "db")}
	first := mustConvert(t, args...)
	lost = true
	again := mustConvert(t, args...)
	if len(again.Layers) != 3 || again.Layers[0].Reused || again.Digest != first.Digest {
		t.Errorf("converted to %+v", again)
	}
	lost = false
	if s := mustConvert(t, args...); len(s.Layers) != 0 {
		t.Errorf("it was not noted again: %+v", s)
	}
}
