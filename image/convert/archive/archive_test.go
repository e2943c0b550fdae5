// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/image/convert/archive"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

func descriptor(text string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(text), Size: int64(len(text))}
}

// want wants desc to be text.
func want(t *testing.T, src store.Source, desc ocispec.Descriptor, text string) {
	t.Helper()
	b, err := src.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); err != nil || string(got) != text {
		t.Errorf("%s is %q, %v; want %q", desc.Digest, got, err, text)
	}
}

func TestOCI(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(name, []byte("something old"), 0o600); err != nil {
		t.Fatal(err)
	}
	var last []byte
	for _, order := range [][]string{{"a", "b", "top"}, {"b", "top", "a"}} {
		w, err := archive.Create(name, "v1")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range order {
			err = errors.Join(err, w.PushBlob(t.Context(), descriptor(text), strings.NewReader(text)))
		}
		if err := errors.Join(err, w.Tag(t.Context(), descriptor("top")), w.Close()); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(name)
		if err != nil || last != nil && !bytes.Equal(text, last) {
			t.Errorf("the archive depends on the order of its blobs, or %v", err)
		}
		last = text
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	r, err := archive.Open(name, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	desc, err := r.Resolve(t.Context())
	if err != nil || desc.Digest != digest.FromString("top") {
		t.Errorf("resolved to %+v, %v", desc, err)
	}
	want(t, r, desc, "top")
	want(t, r, descriptor("b"), "b")
	if ok, err := r.Has(t.Context(), descriptor("c")); ok || err != nil {
		t.Errorf("Has: %v, %v", ok, err)
	}
	if _, err := r.Open(t.Context(), descriptor("c")); !errdefs.IsNotFound(err) {
		t.Errorf("a missing blob: %v", err)
	}
}

// TestUntagged: an archive that is not completed leaves what was there.
func TestUntagged(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := archive.Create(name, "v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.PushBlob(t.Context(), descriptor("a"), strings.NewReader("a")), w.Close()); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(name); err != nil || string(text) != "old" {
		t.Errorf("the file is %q, %v", text, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// An item is a file of a tar, or a link.
type item struct {
	name, text string
	typeflag   byte
	target     string
}

func write(t testing.TB, items ...item) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, i := range items {
		h := &tar.Header{Typeflag: i.typeflag, Name: i.name, Linkname: i.target, Mode: 0o644, Size: int64(len(i.text))}
		if i.typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// saved returns what docker save writes: two layers, of which one is a link.
func saved(t testing.TB) []byte {
	t.Helper()
	config := fmt.Sprintf(`{"rootfs":{"diff_ids":[%q,%q]}}`, digest.FromString("layer"), digest.FromString("layer"))
	return write(t,
		item{name: "abc/layer.tar", text: "layer"},
		item{name: "def/layer.tar", typeflag: tar.TypeSymlink, target: "../abc/layer.tar"},
		item{name: "config.json", text: config},
		item{name: "./manifest.json", text: `[
			{"Config":"config.json","RepoTags":["app:v1","r.io/app:v2"],"Layers":["abc/layer.tar","def/layer.tar"]},
			{"Config":"config.json","RepoTags":["short:v1"],"Layers":["abc/layer.tar"]},
			{"Config":"none.json","RepoTags":["hollow:v1"],"Layers":[]}]`})
}

func TestDocker(t *testing.T) {
	name := filepath.Join(t.TempDir(), "saved.tar")
	if err := os.WriteFile(name, saved(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for ref, message := range map[string]string{
		"app:v1": "", "docker.io/library/app:v1": "", "r.io/app:v2": "",
		"": "choose one", "app:v3": `no image "app:v3"`, "short:v1": "1 layers, but 2 diff IDs", "hollow:v1": "none.json",
	} {
		t.Run(ref, func(t *testing.T) {
			r, err := archive.OpenDocker(name, ref)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			desc, err := r.Resolve(t.Context())
			if message != "" {
				if err == nil || !strings.Contains(err.Error(), message) {
					t.Errorf("error %v, want %q", err, message)
				}
				return
			}
			if err != nil || desc.MediaType != images.MediaTypeDockerSchema2Manifest {
				t.Fatalf("resolved to %+v, %v", desc, err)
			}
			want(t, r, descriptor("layer"), "layer")
			if _, err := r.Open(t.Context(), descriptor("other")); !errdefs.IsNotFound(err) {
				t.Errorf("a missing layer: %v", err)
			}
		})
	}
}

func TestNoArchive(t *testing.T) {
	dir := t.TempDir()
	for text, message := range map[string]string{
		"\x1f\x8b\x08\x00rest": "compressed, with gzip", "\x28\xb5\x2f\xfdrest": "compressed, with zstd",
		strings.Repeat("no tar ", 100): "read tar", "short": "read tar",
	} {
		name := filepath.Join(dir, "x")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, oci := archive.Open(name, "")
		_, docker := archive.OpenDocker(name, "")
		for _, err := range []error{oci, docker} {
			if err == nil || !strings.Contains(err.Error(), message) {
				t.Errorf("%.10q: %v, want %q", text, err, message)
			}
		}
	}
}

// FuzzDocker: any file yields an image whose documents can be read, or an
// error.
func FuzzDocker(f *testing.F) {
	f.Add(saved(f), "app:v1")
	f.Add(write(f, item{name: "manifest.json", text: `[{"Config":"l"}]`}, item{name: "l", typeflag: tar.TypeSymlink, target: "l"}), "")
	f.Add(write(f, item{name: "manifest.json", text: `[]`}), "")
	fd, err := unix.MemfdCreate("archive", unix.MFD_CLOEXEC) // a disk would make it wait
	if err != nil {
		f.Fatal(err)
	}
	memory := os.NewFile(uintptr(fd), "archive")
	f.Cleanup(func() { _ = memory.Close() })
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	f.Fuzz(func(t *testing.T, text []byte, ref string) {
		if err := memory.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := memory.WriteAt(text, 0); err != nil {
			t.Fatal(err)
		}
		r, err := archive.OpenDocker(name, ref)
		if err != nil {
			return
		}
		defer r.Close()
		desc, err := r.Resolve(t.Context())
		if err != nil {
			return
		}
		b, err := r.Open(t.Context(), desc)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, b); n != desc.Size || err != nil {
			t.Errorf("the manifest has %d bytes, %v; want %d", n, err, desc.Size)
		}
	})
}
