// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// tarOf returns a layer of files.
func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func compress(t testing.TB, kind string, layer []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch kind {
	case "gzip":
		w = gzip.NewWriter(&buf)
	case "zstd":
		z, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		return layer
	}
	if _, err := w.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// convertLayer converts a layer on below as the snapshotter has it done, and
// returns the lower that it becomes.
func convertLayer(t testing.TB, c converter, below *spec.Volume, layer, kind string, diffID digest.Digest) spec.Lower {
	t.Helper()
	dir := t.TempDir()
	err := c.Convert(t.Context(), snapshotter.Conversion{Below: below, Layer: layer, DiffID: diffID, FSType: "ext4", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l := spec.Lower{File: filepath.Join(dir, "overlaybd.commit"), TargetFile: layer}
	if kind != "" {
		l.GzipIndex = filepath.Join(dir, kind+".meta")
	}
	return l
}

// native adds a layer with content of its own to a registry.
func native(t testing.TB, reg *fetchertest.Registry, layer []byte) spec.Lower {
	t.Helper()
	var buf bytes.Buffer
	chain := build.New(build.Options{Dir: t.TempDir()})
	if err := chain.Build(t.Context(), &buf, bytes.NewReader(layer), build.Layer{DiffID: digest.FromBytes(layer)}); err != nil {
		t.Fatal(err)
	}
	ref := reg.AddBlob("app", buf.Bytes())
	return spec.Lower{Digest: ref.Digest, Size: ref.Size}
}

// TestConvert builds layers of each compression on one in a registry, and reads
// what they make up.
func TestConvert(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	cfg := conf.Default()
	cfg.Registry.PlainHTTP = []string{reg.Host()}
	cfg.Registry.HostsDir, cfg.Registry.DockerConfig, cfg.Registry.CredFile = "", "", ""
	large := strings.Repeat("0123456789abcdef", 100_000)
	v := &spec.Volume{RepoBlobURL: reg.URL() + "/v2/app/blobs"}
	v.Lowers = append(v.Lowers, native(t, reg, tarOf(t, map[string]string{"native": "n", "gone": "g", "changed": "old"})))
	for i, kind := range []string{"gzip", "", "zstd"} {
		layer := tarOf(t, map[string]string{"file-" + kind: large + kind, ".wh.gone": "", "changed": kind})
		path := filepath.Join(t.TempDir(), "layer.tar")
		if err := os.WriteFile(path, compress(t, kind, layer), 0o600); err != nil {
			t.Fatal(err)
		}
		diffID := digest.FromBytes(layer)
		if i == 0 {
			diffID = "" // as with a differ that does not tell
		}
		v.Lowers = append(v.Lowers, convertLayer(t, converter{cfg, t.Context()}, v, path, kind, diffID))
	}
	remote := registry.New(registry.Options{PlainHTTP: []string{reg.Host()}})
	defer remote.Close()
	img, err := image.Open(t.Context(), v, fetcher.Schemes{"file": file.Opener{}, "http": remote})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for name, want := range map[string]string{
		"native": "n", "changed": "zstd", "file-": large, "file-gzip": large + "gzip", "file-zstd": large + "zstd",
	} {
		if got, err := readFile(t, img, name); err != nil || got != want {
			t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
	if _, err := readFile(t, img, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that was removed: %v", err)
	}
}

func readFile(t testing.TB, img *image.Image, name string) (string, error) {
	t.Helper()
	r, err := ext4.NewReader(t.Context(), img)
	if err != nil {
		return "", err
	}
	for e, err := range r.ReadDir(t.Context(), ext4.RootIno) {
		if err != nil {
			return "", err
		}
		if e.Name != name {
			continue
		}
		st, err := r.Stat(t.Context(), e.Ino)
		if err != nil {
			return "", err
		}
		p := make([]byte, st.Size)
		n, err := r.ReadAt(t.Context(), e.Ino, p, 0)
		if n == len(p) {
			err = nil
		}
		return string(p[:n]), err
	}
	return "", fs.ErrNotExist
}

// TestConvertErofs: the file system of a layer is that of the layers below,
// whatever the snapshotter would have.
func TestConvertErofs(t *testing.T) {
	v := new(spec.Volume)
	for _, fsType := range []string{"erofs", "ext4"} {
		layer := tarOf(t, map[string]string{"file-" + fsType: strings.Repeat("0123456789abcdef", 1000)})
		dir, path := t.TempDir(), filepath.Join(t.TempDir(), "layer.tar")
		if err := os.WriteFile(path, layer, 0o600); err != nil {
			t.Fatal(err)
		}
		job := snapshotter.Conversion{Below: v, Layer: path, FSType: fsType, Dir: dir}
		if len(v.Lowers) == 0 {
			job.Below = nil
		}
		if err := (converter{conf.Default(), t.Context()}).Convert(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		v.Lowers = append(v.Lowers, spec.Lower{File: filepath.Join(dir, "overlaybd.commit"), TargetFile: path})
	}
	img, err := image.Open(t.Context(), v, fetcher.Schemes{"file": file.Opener{}})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	r, err := erofs.NewReader(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for e, err := range r.ReadDir(t.Context(), r.Root()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, e.Name)
	}
	slices.Sort(names)
	if d := cmp.Diff([]string{"file-erofs", "file-ext4"}, names); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

// TestConvertFails: a layer that is not what its diff ID says, or cannot be
// read, is no layer, and a conversion ends with its caller's patience.
func TestConvertFails(t *testing.T) {
	layer := compress(t, "gzip", tarOf(t, map[string]string{"file": strings.Repeat("text", 10_000)}))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name      string
		ctx, life context.Context //nolint:containedctx // of the call
		layer     []byte
		diffID    digest.Digest
	}{
		{"other content", t.Context(), t.Context(), layer, digest.FromString("other")},
		{"cut", t.Context(), t.Context(), layer[:len(layer)/2], digest.FromBytes(layer)},
		{"no tar", t.Context(), t.Context(), bytes.Repeat([]byte("no tar"), 1000), ""},
		{"given up", ended, t.Context(), layer, ""},
		{"stopped", t.Context(), ended, layer, ""},
	} {
		path := filepath.Join(t.TempDir(), "layer.tar")
		if err := os.WriteFile(path, tc.layer, 0o600); err != nil {
			t.Fatal(err)
		}
		err := converter{conf.Default(), tc.life}.Convert(tc.ctx, snapshotter.Conversion{Layer: path, DiffID: tc.diffID, FSType: "ext4", Dir: t.TempDir()})
		if err == nil {
			t.Errorf("%s: no error", tc.name)
		}
	}
}
