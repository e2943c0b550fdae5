// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestTurboDedup: turbo layers are found again, and their originals mounted,
// but not where the same tar was compressed otherwise.
func TestTurboDedup(t *testing.T) {
	reg := e2e.StartRegistry(t)
	img := makeImage(t, amd64, three...)
	reg.Push(t, makeImage(t, amd64, three[:2]...), "lib/base", "v1")
	reg.Push(t, img, "lib/app", "v1")
	db := filepath.Join(t.TempDir(), "db")
	to := func(repo, tag string, more ...string) converted {
		return mustConvert(t, append(more, "--source", reg.Host+"/"+repo+":v1", "--turbo-target", reg.Host+"/out/"+repo+":"+tag, "--db-str", db)...)
	}
	count := func(r result) (reused int) {
		for _, l := range r.Layers {
			if l.Reused {
				reused++
			}
		}
		return reused
	}
	base := to("lib/base", "a")
	if count(base.result) != 0 || base.Originals == nil || base.Originals.Mounted != 2 {
		t.Errorf("the first conversion: %+v", base.result)
	}
	app := to("lib/app", "a")
	if count(app.result) != 2 || len(app.Layers) != 3 || app.Originals.Mounted != 3 {
		t.Errorf("on known layers: %+v", app.result)
	}
	src := place{repository(t, app.Target), app}
	checkTurbo(t, src, resolve(t, src))
	if plain := mustConvert(t, "--source", reg.Host+"/lib/app:v1", "--no-upload", "--turboOCI", "x"); plain.Digest != app.Digest {
		t.Errorf("with known layers %s, without %s", app.Digest, plain.Digest)
	}
	if s := to("lib/app", "b"); s.Digest != app.Digest || len(s.Layers) != 0 {
		t.Errorf("a known manifest: %+v", s.result)
	}
	// Both are asked for, one is known.
	s := to("lib/app", "c", "--target", reg.Host+"/out/lib/app:native")
	if count(s.Outputs[0]) != 0 || len(s.Outputs[0].Layers) != 3 || len(s.Outputs[1].Layers) != 0 || s.Outputs[1].Digest != app.Digest {
		t.Errorf("native with a known turbo image: %+v", s.Outputs)
	}
	// Another blob of the same tar has another index.
	changed := relayered(t, img, 0, func(text []byte) []byte {
		text[4]++ // the time in the gzip header
		return text
	})
	other := mustConvert(t, "--source", changed, "--turbo-target", reg.Host+"/out/lib/app:d", "--db-str", db)
	if count(other.result) != 0 || other.Originals.Copied != 1 {
		t.Errorf("of another blob: %+v", other.result)
	}
}

// TestTurboOnBaseLayer: the base layer is a native one, below turbo layers.
func TestTurboOnBaseLayer(t *testing.T) {
	base := baseLayer(t)
	img := makeImage(t, amd64, three...)
	out := filepath.Join(t.TempDir(), "out")
	s := mustConvert(t, "--source", "oci:"+img.Dir, "--turbo-target", "oci:"+out, "--mkfs=false", "--base-layer", base)
	src := place{openLayout(t, out, ""), s}
	var m ocispec.Manifest
	read(t, src, resolve(t, src), &m)
	if len(m.Layers) != 4 || m.Layers[0].Annotations[convert.AnnotationVersion] != "0.1.0" || m.Layers[0].MediaType != ocispec.MediaTypeImageLayer {
		t.Fatalf("layers %+v", m.Layers)
	}
	checkDisk(t, disk(t, src, m))
}

// TestEROFS: the file system may be EROFS in either format; native layers say
// so, for readers that do not look.
func TestEROFS(t *testing.T) {
	img := makeImage(t, amd64, three...)
	out := filepath.Join(t.TempDir(), "out")
	s := mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci:"+out+":native", "--turbo-target", "oci:"+out+":turbo", "--fstype", "erofs")
	for i, want := range []string{"erofs", ""} {
		src := place{openLayout(t, out, s.Outputs[i].Format), s}
		var m ocispec.Manifest
		read(t, src, resolve(t, src), &m)
		if got := m.Layers[2].Annotations[convert.AnnotationFSType]; got != want || s.Outputs[i].FSType != "erofs" {
			t.Errorf("%s layers say they are of %q, want %q", s.Outputs[i].Format, got, want)
		}
		dir := filepath.Join(t.TempDir(), "tree")
		cmd := exec.CommandContext(t.Context(), need.Command(t, "fsck.erofs"), "--extract="+dir, "--no-preserve", disk(t, src, m))
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, text)
		}
		for name, want := range map[string]string{"etc/b": "two\n", "c": "three\n", "etc/big": strings.Repeat("0123456789abcdef", 1<<16)} {
			if got := string(slurp(t, filepath.Join(dir, name))); got != want {
				t.Errorf("%s: %s is %.100q", s.Outputs[i].Format, name, got)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "etc/a")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: what was deleted is there: %v", s.Outputs[i].Format, err)
		}
	}
}

// TestTurboOfGoldenTars: both formats show the same files, of the layers that
// the reference was tried with.
func TestTurboOfGoldenTars(t *testing.T) {
	golden, _ := need.Golden(t, "tars/l*.tar")
	var layers []e2e.Layer
	for _, name := range []string{"l0", "l1", "l2"} {
		layers = append(layers, copied(slurp(t, filepath.Join(golden, "tars", name+".tar"))))
	}
	img := makeImage(t, amd64, layers...)
	out := filepath.Join(t.TempDir(), "out")
	s := mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci:"+out+":native", "--turbo-target", "oci:"+out+":turbo")
	var trees []map[string]string
	for _, o := range s.Outputs {
		src := place{openLayout(t, out, o.Format), s}
		var m ocispec.Manifest
		read(t, src, resolve(t, src), &m)
		name := disk(t, src, m)
		if text, err := exec.CommandContext(t.Context(), need.Command(t, "e2fsck"), "-fn", name).CombinedOutput(); err != nil {
			t.Errorf("%s: e2fsck: %v\n%s", o.Format, err, text)
		}
		trees = append(trees, dumped(t, name))
	}
	if len(trees[0]) < 100 {
		t.Errorf("only %d files", len(trees[0]))
	}
	if diff := cmp.Diff(trees[0], trees[1]); diff != "" {
		t.Error(diff)
	}
}

// copied returns a layer of what a tar holds.
func copied(text []byte) e2e.Layer {
	return func(w *tar.Writer) error {
		for r := tar.NewReader(bytes.NewReader(text)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = w.WriteHeader(h)
			}
			if err == nil {
				_, err = io.Copy(w, r)
			}
			if err != nil {
				return err
			}
		}
	}
}

// dumped returns the digests of all files of an ext4 disk, and where symbolic
// links lead to.
func dumped(t *testing.T, name string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), need.Command(t, "debugfs"), "-R", "rdump / "+dir, name).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	tree := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, dir)
		switch {
		case err != nil:
			return err
		case d.Type() == fs.ModeSymlink:
			tree[rel], err = os.Readlink(path)
		case d.Type().IsRegular():
			tree[rel] = digest.FromBytes(slurp(t, path)).String()
		default:
			tree[rel] = d.Type().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestTurboOnFoundEROFS: a layer is built on one that was found again, of which
// nothing but the metadata is read.
func TestTurboOnFoundEROFS(t *testing.T) {
	reg := e2e.StartRegistry(t)
	reg.Push(t, makeImage(t, amd64, three[:2]...), "base", "v1")
	reg.Push(t, makeImage(t, amd64, three...), "app", "v1")
	db := filepath.Join(t.TempDir(), "db")
	args := func(repo string) []string {
		return []string{"-r", reg.Host + "/" + repo, "-i", "v1", "--turboOCI", "turbo", "--fstype", "erofs", "--db-str", db}
	}
	mustConvert(t, args("base")...)
	app := mustConvert(t, args("app")...)
	if len(app.Layers) != 3 || !app.Layers[1].Reused || app.Layers[2].Reused {
		t.Errorf("on known layers: %+v", app.Layers)
	}
	if plain := mustConvert(t, append(args("app"), "--no-upload", "--db-str", "")...); plain.Digest != app.Digest {
		t.Errorf("with known layers %s, without %s", app.Digest, plain.Digest)
	}
}

// TestBadTurboImages: one error of many ends both images, and neither comes to
// be.
func TestBadTurboImages(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(text []byte) []byte
		want  string
	}{
		"gzip cut":    {func(text []byte) []byte { return text[:len(text)-20] }, "decompress gzip: "},
		"bit flipped": {func(text []byte) []byte { text[len(text)-6] ^= 1; return text }, "decompress gzip: "},
		"no tar":      {func([]byte) []byte { return []byte(strings.Repeat("no tar ", 1000)) }, "read tar entry 0"},
		"another":     {func([]byte) []byte { return slurp(t, os.DevNull) }, "content differs from diff ID"},
	} {
		t.Run(name, func(t *testing.T) {
			source := relayered(t, makeImage(t, amd64, three...), 1, tt.spoil)
			for _, formats := range [][]string{{"turbo-target"}, {"target", "turbo-target"}} {
				dir := t.TempDir()
				args := []string{"--source", source, "--dir", dir + "/work"}
				for _, f := range formats {
					args = append(args, "--"+f, "oci:"+dir+"/"+f)
				}
				_, status, errs := convertor(t.Context(), t, args...)
				if status != exitFailure || !strings.Contains(errs, "apply layer sha256:") || !strings.Contains(errs, tt.want) {
					t.Errorf("%v: status %d, error without %q: %s", formats, status, tt.want, errs)
				}
				checkEmpty(t, dir)
			}
		})
	}
}
