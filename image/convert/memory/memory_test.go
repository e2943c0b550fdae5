// SPDX-License-Identifier: Apache-2.0

package memory_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
	"github.com/overlaybd-go/overlaybd/image/convert/memory"
)

// A registry is repositories with their blobs and documents, by digest.
type registry map[string]map[digest.Digest][]byte

// A repo is one repository of a registry.
type repo struct {
	registry
	name string
	err  error // of every request
}

func (r repo) Has(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	text, ok := r.registry[r.name][desc.Digest]
	return ok && (desc.Size == 0 || int64(len(text)) == desc.Size), r.err
}

func (r repo) Mount(_ context.Context, desc ocispec.Descriptor, from string) (bool, error) {
	text, ok := r.registry[from][desc.Digest]
	if ok {
		r.registry[r.name][desc.Digest] = text
	}
	return ok, r.err
}

func (r repo) Blob(_ context.Context, desc ocispec.Descriptor) (fetcher.Blob, error) {
	return blob{bytes.NewReader(r.registry[r.name][desc.Digest])}, r.err
}

type blob struct{ *bytes.Reader }

func (b blob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return b.Reader.ReadAt(p, off)
}
func (b blob) Close() error { return nil }

func (r repo) add(text string) ocispec.Descriptor {
	d := digest.FromString(text)
	r.registry[r.name][d] = []byte(text)
	return ocispec.Descriptor{Digest: d, Size: int64(len(text))}
}

// A site is a database and a registry, with the log of all memories.
type site struct {
	db  *dedup.DB
	reg registry
	log bytes.Buffer
}

func newSite(t *testing.T) *site {
	t.Helper()
	db, err := dedup.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return &site{db: db, reg: registry{"a": {}, "b": {}}}
}

func (s *site) memory(r repo) *memory.Memory {
	return memory.New(s.db, r, memory.Options{
		Host: "h", Repo: r.name, Layers: func(convert.Layer) dedup.Tag { return dedup.NewTag(1, nil) }, Manifests: dedup.NewTag(1, nil),
		MediaType: convert.OCIType, Log: slog.New(slog.NewTextHandler(&s.log, nil)),
		Document: func(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
			return r.registry[r.name][desc.Digest], nil
		},
	})
}

var layer = convert.Layer{ChainID: digest.FromString("chain")}

// find reports whether the layer is found as want.
func find(t *testing.T, m *memory.Memory, want ocispec.Descriptor) bool {
	t.Helper()
	got, b, err := m.Find(t.Context(), layer)
	if err != nil {
		t.Fatal(err)
	}
	if b != nil && (got.Digest != want.Digest || b.Size() != want.Size) {
		t.Errorf("found %+v, want %+v", got, want)
	}
	return b != nil
}

func TestLayers(t *testing.T) {
	s := newSite(t)
	a, b := repo{registry: s.reg, name: "a"}, repo{registry: s.reg, name: "b"}
	desc := a.add("blob")
	if find(t, s.memory(a), desc) {
		t.Error("found before it was noted")
	}
	if err := s.memory(a).Add(t.Context(), layer, desc); err != nil {
		t.Fatal(err)
	}
	if !find(t, s.memory(a), desc) || !find(t, s.memory(b), desc) {
		t.Error("not found")
	}
	delete(s.reg["a"], desc.Digest)
	if !find(t, s.memory(b), desc) {
		t.Error("not found where it was mounted")
	}
	delete(s.reg["b"], desc.Digest)
	if find(t, s.memory(b), desc) {
		t.Error("found where it is gone")
	}
	b.add("blob") // the row went with the blob
	if find(t, s.memory(b), desc) {
		t.Error("found by a row that was to be deleted")
	}
}

// TestTrouble: neither a registry nor a database in trouble is an error, but
// there is a warning.
func TestTrouble(t *testing.T) {
	s := newSite(t)
	a := repo{registry: s.reg, name: "a"}
	desc := a.add("blob")
	if err := s.memory(a).Add(t.Context(), layer, desc); err != nil {
		t.Fatal(err)
	}
	a.err = errors.New("registry on fire")
	if find(t, s.memory(a), desc) || !strings.Contains(s.log.String(), "on fire") {
		t.Errorf("log: %s", &s.log)
	}
	a.err = nil
	if !find(t, s.memory(a), desc) {
		t.Error("forgotten because the registry was in trouble")
	}
	s.log.Reset()
	_ = s.db.Close()
	if find(t, s.memory(a), desc) || s.log.Len() == 0 {
		t.Errorf("log: %s", &s.log)
	}
	if err := s.memory(a).Add(t.Context(), layer, desc); err != nil {
		t.Error(err)
	}
	if _, ok, err := s.memory(a).Recall(t.Context(), desc); ok || err != nil {
		t.Errorf("recalled %v, %v", ok, err)
	}
}

// TestMismatch: a conversion that makes something else of the same is wrong,
// or the one before was.
func TestMismatch(t *testing.T) {
	s := newSite(t)
	m := s.memory(repo{registry: s.reg, name: "a"})
	for i, text := range []string{"one", "one", "two"} {
		err := m.Add(t.Context(), layer, ocispec.Descriptor{Digest: digest.FromString(text), Size: 3})
		if errors.Is(err, dedup.ErrMismatch) != (i == 2) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestInterrupted(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := s.memory(repo{registry: s.reg, name: "a"})
	if _, _, err := m.Find(ctx, layer); !errors.Is(err, context.Canceled) {
		t.Errorf("Find: %v", err)
	}
	if _, _, err := m.Recall(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x")}); !errors.Is(err, context.Canceled) {
		t.Errorf("Recall: %v", err)
	}
}

func TestManifests(t *testing.T) {
	s := newSite(t)
	a := repo{registry: s.reg, name: "a"}
	blob, config := a.add("blob"), a.add("config")
	text, err := json.Marshal(ocispec.Manifest{Config: config, Layers: []ocispec.Descriptor{blob}})
	if err != nil {
		t.Fatal(err)
	}
	source := ocispec.Descriptor{MediaType: "application/vnd.docker.distribution.manifest.v2+json", Digest: digest.FromString("source"), Size: 6}
	made := a.add(string(text))
	m := s.memory(a)
	if _, ok, err := m.Recall(t.Context(), source); ok || err != nil {
		t.Errorf("recalled %v, %v", ok, err)
	}
	if err := m.Remember(t.Context(), source, made); err != nil {
		t.Fatal(err)
	}
	got, ok, err := m.Recall(t.Context(), source)
	if err != nil || !ok || got.Digest != made.Digest || got.Size != made.Size || got.MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("recalled %+v, %v, %v", got, ok, err)
	}
	delete(s.reg["a"], blob.Digest)
	if _, ok, err := m.Recall(t.Context(), source); ok || err != nil {
		t.Errorf("recalled without its layer: %v, %v", ok, err)
	}
	a.add("blob")
	if _, ok, err := m.Recall(t.Context(), source); ok || err != nil {
		t.Errorf("recalled by a row that was to be deleted: %v, %v", ok, err)
	}
}

// TestTurboManifests: a turbo image without a layer of its source is of no use.
func TestTurboManifests(t *testing.T) {
	s := newSite(t)
	a := repo{registry: s.reg, name: "a"}
	blob, config, target := a.add("blob"), a.add("config"), a.add("target")
	blob.Annotations = map[string]string{convert.AnnotationTarget: target.Digest.String()}
	text, err := json.Marshal(ocispec.Manifest{Config: config, Layers: []ocispec.Descriptor{blob}})
	if err != nil {
		t.Fatal(err)
	}
	source := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("source"), Size: 6}
	m := s.memory(a)
	if err := m.Remember(t.Context(), source, a.add(string(text))); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := m.Recall(t.Context(), source); !ok || err != nil {
		t.Errorf("recalled %v, %v", ok, err)
	}
	delete(s.reg["a"], target.Digest)
	if _, ok, err := m.Recall(t.Context(), source); ok || err != nil {
		t.Errorf("recalled without its target: %v, %v", ok, err)
	}
}
