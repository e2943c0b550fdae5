// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert/layout"
)

func create(t *testing.T, dir, name string) *layout.Writer {
	t.Helper()
	w, err := layout.Create(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func descriptor(text string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(text), Size: int64(len(text))}
}

// add writes text and tags it.
func add(t *testing.T, dir, name, text string) {
	t.Helper()
	w := create(t, dir, name)
	desc := descriptor(text)
	if err := errors.Join(w.Push(t.Context(), desc, []byte(text), nil), w.Tag(t.Context(), desc), w.Close()); err != nil {
		t.Fatal(err)
	}
}

// check wants the name to stand for text.
func check(t *testing.T, dir, name, text string) {
	t.Helper()
	r, err := layout.Open(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := r.Resolve(t.Context())
	if err != nil || desc.Digest != digest.FromString(text) {
		t.Fatalf("%q is %s, %v", name, desc.Digest, err)
	}
	b, err := r.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); err != nil || string(got) != text {
		t.Errorf("%q is %q, %v", name, got, err)
	}
}

func TestNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	add(t, dir, "", "only")
	check(t, dir, "", "only")
	add(t, dir, "v1", "one")
	add(t, dir, "v2", "two")
	add(t, dir, "v1", "new one")
	check(t, dir, "v1", "new one")
	check(t, dir, "v2", "two")
	check(t, dir, digest.FromString("only").String(), "only")
	for name, want := range map[string]string{"": `choose one: "sha256:`, "v3": `no image "v3", but`} {
		r, err := layout.Open(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Resolve(t.Context()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"v2"`) {
			t.Errorf("%q: %v", name, err)
		}
	}
	var index ocispec.Index
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil || json.Unmarshal(text, &index) != nil || len(index.Manifests) != 3 {
		t.Errorf("index.json: %s, %v", text, err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "oci-layout")); err != nil || string(text) != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s, %v", text, err)
	}
}

// TestConcurrentTags: no name gets lost where many are written.
func TestConcurrentTags(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			w, err := layout.Create(dir, fmt.Sprint(i))
			if err != nil {
				t.Error(err)
				return
			}
			text := fmt.Sprint("text ", i)
			desc := descriptor(text)
			if err := errors.Join(w.Push(t.Context(), desc, []byte(text), nil), w.Tag(t.Context(), desc), w.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range 8 {
		check(t, dir, fmt.Sprint(i), fmt.Sprint("text ", i))
	}
}

func paths(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(name, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestUntagged: what got no name is gone, and what others have stays.
func TestUntagged(t *testing.T) {
	fresh := filepath.Join(t.TempDir(), "fresh", "dir")
	w := create(t, fresh, "v1")
	if err := errors.Join(w.Push(t.Context(), descriptor("x"), []byte("x"), nil), w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(fresh)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}

	dir := t.TempDir()
	add(t, dir, "v1", "shared")
	before := paths(t, dir)
	w = create(t, dir, "v2")
	for _, text := range []string{"shared", "new"} {
		if err := w.Push(t.Context(), descriptor(text), []byte(text), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if after := paths(t, dir); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("there is %v, was %v", after, before)
	}
}

// TestUntaggedBesideOthers: a blob that another writer may count on stays.
func TestUntaggedBesideOthers(t *testing.T) {
	dir := t.TempDir()
	a, b := create(t, dir, "a"), create(t, dir, "b")
	desc := descriptor("x")
	if err := a.Push(t.Context(), desc, []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	if ok, err := b.Has(t.Context(), desc); !ok || err != nil {
		t.Fatalf("Has: %v, %v", ok, err)
	}
	if err := errors.Join(a.Close(), b.Tag(t.Context(), desc), b.Close()); err != nil {
		t.Fatal(err)
	}
	check(t, dir, "b", "x")
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, "v1")
	desc := descriptor("text")
	if err := w.PushBlob(t.Context(), desc, strings.NewReader("tex?")); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("other content: %v", err)
	}
	if err := w.PushBlob(t.Context(), desc, strings.NewReader("te")); err == nil {
		t.Error("short content was taken")
	}
	if err := w.PushBlob(t.Context(), ocispec.Descriptor{Digest: "sha256:../../x"}, strings.NewReader("")); err == nil {
		t.Error("a path was taken for a digest")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.PushBlob(ctx, desc, strings.NewReader("text")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left := paths(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := w.Open(t.Context(), desc); !errdefs.IsNotFound(err) {
		t.Errorf("a missing blob: %v", err)
	}
}

// FuzzResolve: any index.json yields a descriptor that is valid, or an error.
func FuzzResolve(f *testing.F) {
	valid := digest.FromString("").String()
	f.Add([]byte(`{"manifests":[{"digest":"`+valid+`","annotations":{"org.opencontainers.image.ref.name":"v1"}}]}`), "v1")
	f.Add([]byte(`{"manifests":[{"digest":"`+valid+`","annotations":{"io.containerd.image.name":"r.io/a:v1"}},{"digest":"x"}]}`), "v1")
	f.Add([]byte(`{"manifests":[{}]}`), "")
	f.Add([]byte(`[]`), "")
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		r := layout.NewReader(fstest.MapFS{"index.json": {Data: text}}, name)
		desc, err := r.Resolve(t.Context())
		if err == nil && desc.Digest.Validate() != nil {
			t.Errorf("digest %q", desc.Digest)
		}
		if _, err := r.Open(t.Context(), desc); err == nil && !bytes.Contains(text, []byte("index.json")) {
			t.Error("a blob out of nowhere")
		}
	})
}
