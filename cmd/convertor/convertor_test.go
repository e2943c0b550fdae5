// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/archive"
	"github.com/overlaybd-go/overlaybd/image/convert/layout"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// files returns a layer of files by name.
func files(content map[string]string) e2e.Layer {
	return func(w *tar.Writer) error {
		for _, name := range slices.Sorted(maps.Keys(content)) {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content[name]))}
			if strings.HasSuffix(name, "/") {
				h = &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
			}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			if h.Size > 0 {
				if _, err := io.WriteString(w, content[name]); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// three are the layers of most images here.
var three = []e2e.Layer{
	files(map[string]string{"etc/": "", "etc/a": "one\n", "etc/big": strings.Repeat("0123456789abcdef", 1<<16)}),
	files(map[string]string{"etc/": "", "etc/.wh.a": "", "etc/b": "two\n"}),
	files(map[string]string{"c": "three\n"}),
}

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// makeImage writes an image to a new layout and returns its directory.
func makeImage(t *testing.T, p ocispec.Platform, layers ...e2e.Layer) e2e.Image {
	t.Helper()
	img, err := e2e.Build(filepath.Join(t.TempDir(), "image"), p, []string{"/bin/sh"}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// convertor runs the command in dir and returns what it wrote to stdout, and
// its exit status.
func convertor(ctx context.Context, t *testing.T, args ...string) (stdout string, status int, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{"--dir", filepath.Join(t.TempDir(), "work"), "--vsize", "1"}, args...)
	err := run(ctx, args, &out, &errs)
	status = report(ctx, err, &errs)
	return out.String(), status, errs.String()
}

// A converted image is the first of those that a run has written.
type converted struct {
	summary
	result
}

// mustConvert runs the command with --json, wants it to succeed, and returns
// its summary.
func mustConvert(t *testing.T, args ...string) converted {
	t.Helper()
	out, status, errs := convertor(t.Context(), t, append(args, "--json")...)
	if status != 0 {
		t.Fatalf("convertor %q: status %d\n%s", args, status, errs)
	}
	var s summary
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return converted{s, s.Outputs[0]}
}

// read decodes a document of src.
func read(t *testing.T, src store.Source, desc ocispec.Descriptor, v any) string {
	t.Helper()
	text, err := convert.ReadDocument(t.Context(), src, desc)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func resolve(t *testing.T, src store.Source) ocispec.Descriptor {
	t.Helper()
	desc, err := src.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

func openLayout(t *testing.T, dir, name string) *layout.Reader {
	t.Helper()
	r, err := layout.Open(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fetch writes the blob desc to a file and returns its name.
func fetch(t *testing.T, src store.Source, desc ocispec.Descriptor) string {
	t.Helper()
	r, err := src.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), desc.Digest.Encoded())
	text, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close(), os.WriteFile(name, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(text) != desc.Digest || int64(len(text)) != desc.Size {
		t.Errorf("blob %s is something else", desc.Digest)
	}
	return name
}

func openFile(t *testing.T, name string) *file.Blob {
	t.Helper()
	b, err := file.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openBlock opens a layer of a block image.
func openBlock(t *testing.T, src store.Source, l ocispec.Descriptor) *lsmt.Layer {
	t.Helper()
	if l.Annotations[convert.AnnotationTarget] != "" {
		return openTurbo(t, src, l)
	}
	name := fetch(t, src, l)
	layer, err := image.OpenLayer(t.Context(), openFile(t, name), name)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// disk writes the disk of the manifest to a sparse file and returns its name.
func disk(t *testing.T, src store.Source, m ocispec.Manifest) string {
	t.Helper()
	var layers []*lsmt.Layer
	for _, l := range m.Layers {
		layers = append(layers, openBlock(t, src, l))
	}
	stack, err := lsmt.Merge(layers)
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(stack.Size()); err != nil {
		t.Fatal(err)
	}
	for at := range stack.Mappings() {
		p := make([]byte, at.Sectors*512)
		if _, err := stack.ReadAt(t.Context(), p, int64(at.LBA)*512); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(p, int64(at.LBA)*512); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

// checkDisk wants a sound ext4 with the files of three.
func checkDisk(t *testing.T, name string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), need.Command(t, "e2fsck"), "-fn", name).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	for path, want := range map[string]string{"/etc/b": "two\n", "/c": "three\n", "/etc/a": "", "/etc/big": strings.Repeat("0123456789abcdef", 1<<16)} {
		out, err := exec.CommandContext(t.Context(), need.Command(t, "debugfs"), "-R", "cat "+path, name).Output()
		if err != nil || string(out) != want {
			t.Errorf("%s is %.100q, %v; want %.100q", path, out, err, want)
		}
	}
}

func TestLayoutToLayout(t *testing.T) {
	img := makeImage(t, amd64, three...)
	out := filepath.Join(t.TempDir(), "out")
	s := mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci:"+out+":block")
	src, dst := openLayout(t, img.Dir, ""), openLayout(t, out, "block")
	top := resolve(t, dst)
	if top.Digest != s.Digest || len(s.Layers) != 3 || s.Layers[2].Index != 2 || s.SourceSize != img.Size() {
		t.Errorf("summary %+v", s)
	}
	var before, after ocispec.Manifest
	read(t, src, resolve(t, src), &before)
	read(t, dst, top, &after)
	checkDisk(t, disk(t, dst, after))

	// The config is what it was but for the diff IDs.
	var oldConf, newConf ocispec.Image
	oldText, newText := read(t, src, before.Config, &oldConf), read(t, dst, after.Config, &newConf)
	for i, l := range after.Layers {
		if newConf.RootFS.DiffIDs[i] != l.Digest || l.Annotations[convert.AnnotationDigest] != l.Digest.String() {
			t.Errorf("layer %d: %+v", i, l)
		}
		newText = strings.Replace(newText, l.Digest.String(), oldConf.RootFS.DiffIDs[i].String(), 1)
	}
	if newText != oldText {
		t.Errorf("config %s\nwas %s", newText, oldText)
	}
	left, err := os.ReadDir(filepath.Dir(out))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestReproducible: the bytes do not depend on the number of workers.
func TestReproducible(t *testing.T) {
	img := makeImage(t, amd64, three...)
	digests := map[digest.Digest]bool{}
	for _, jobs := range []int{1, 2, 8} {
		s := mustConvert(t, "--source", "oci:"+img.Dir, "--no-upload", "--jobs", fmt.Sprint(jobs))
		digests[s.Digest] = true
	}
	if len(digests) != 1 {
		t.Errorf("%d digests: %v", len(digests), digests)
	}
}

func TestArchives(t *testing.T) {
	img := makeImage(t, amd64, three...)
	dir := t.TempDir()
	tarball := filepath.Join(dir, "block.tar")
	s := mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci-archive:"+tarball+":v1")
	first, err := os.ReadFile(tarball)
	if err != nil {
		t.Fatal(err)
	}
	mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci-archive:"+tarball+":v1", "--jobs", "1")
	if again, err := os.ReadFile(tarball); err != nil || !bytes.Equal(first, again) {
		t.Errorf("another archive of the same: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	r, err := archive.Open(tarball, "v1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var m ocispec.Manifest
	if top := resolve(t, r); top.Digest != s.Digest {
		t.Errorf("the archive has %s, not %s", top.Digest, s.Digest)
	}
	read(t, r, resolve(t, r), &m)
	checkDisk(t, disk(t, r, m))
}

func TestFlatten(t *testing.T) {
	img := makeImage(t, amd64, three...)
	out := filepath.Join(t.TempDir(), "out")
	mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci:"+out, "--flatten", "--algorithm", "zstd", "--bs", "16")
	dst := openLayout(t, out, "")
	var m ocispec.Manifest
	read(t, dst, resolve(t, dst), &m)
	if len(m.Layers) != 1 {
		t.Fatalf("%d layers", len(m.Layers))
	}
	checkDisk(t, disk(t, dst, m))
	var c ocispec.Image
	read(t, dst, m.Config, &c)
	for i, h := range c.History {
		if h.EmptyLayer != (i < len(c.History)-1) {
			t.Errorf("step %d of the history is %+v", i, h)
		}
	}
}

// TestBaseLayer: the bottom layer is a file system that was made before.
func TestBaseLayer(t *testing.T) {
	base := baseLayer(t)
	img := makeImage(t, amd64, three...)
	for flatten, want := range map[string]int{"false": 4, "true": 1} {
		out := filepath.Join(t.TempDir(), "out")
		mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci:"+out, "--mkfs=false", "--base-layer", base, "--flatten="+flatten)
		dst := openLayout(t, out, "")
		var m ocispec.Manifest
		read(t, dst, resolve(t, dst), &m)
		if len(m.Layers) != want {
			t.Fatalf("%d layers, want %d", len(m.Layers), want)
		}
		checkDisk(t, disk(t, dst, m))
	}
}

// baseLayer returns a block layer of an empty file system.
func baseLayer(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "base")
	w, err := lsmt.Create(name, name+".index", lsmt.CreateOptions{VirtualSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	d, err := lsmt.Overlay(nil, w)
	if err != nil {
		t.Fatal(err)
	}
	if err := ext4.Format(t.Context(), d, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Seal(t.Context()), d.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}
