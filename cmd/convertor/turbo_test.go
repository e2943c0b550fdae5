// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/archive"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// unpack unpacks the blob of a turbo layer as containerd would, and returns
// where its files are.
func unpack(t *testing.T, src store.Source, l ocispec.Descriptor) (dir string, diffID digest.Digest) {
	t.Helper()
	f, err := os.Open(fetch(t, src, l))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir, digest.FromBytes(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		spill(t, filepath.Join(dir, h.Name), content)
	}
}

// openTurbo opens a turbo layer over its target, which lies beside it.
func openTurbo(t *testing.T, src store.Source, l ocispec.Descriptor) *lsmt.Layer {
	t.Helper()
	dir, _ := unpack(t, src, l)
	metas, err := filepath.Glob(filepath.Join(dir, "*.fs.meta"))
	if err != nil || len(metas) != 1 {
		t.Fatalf("the layer has %v, %v", metas, err)
	}
	target := openTarget(t, src, l, dir)
	layer, err := image.OpenTargetLayer(t.Context(), openFile(t, metas[0]), target, metas[0])
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// openTarget opens the content of a turbo layer's target.
func openTarget(t *testing.T, src store.Source, l ocispec.Descriptor, dir string) fetcher.Blob {
	t.Helper()
	desc := ocispec.Descriptor{
		MediaType: l.Annotations[convert.AnnotationTargetType], Digest: digest.Digest(l.Annotations[convert.AnnotationTarget]),
	}
	desc.Size = sizeOf(t, src, desc.Digest)
	raw := openFile(t, fetch(t, src, desc))
	index := ""
	for _, name := range []string{"gzip", "zstd"} {
		if _, err := os.Stat(filepath.Join(dir, name+".meta")); err == nil {
			index = name
		}
	}
	if got := strings.TrimLeft(strings.TrimPrefix(desc.MediaType, ocispec.MediaTypeImageLayer), "+."); got != index {
		t.Errorf("the layer has an index of %q, but its target is %s", index, desc.MediaType)
	}
	if index == "" {
		return raw
	}
	x, err := os.ReadFile(filepath.Join(dir, index+".meta"))
	if err != nil {
		t.Fatal(err)
	}
	var b fetcher.Blob
	if index == "gzip" {
		b, err = gzidx.Open(t.Context(), raw, bytes.NewReader(x), int64(len(x)))
	} else {
		b, err = zstdidx.Open(t.Context(), raw, bytes.NewReader(x), int64(len(x)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A place is where a converted image lies.
type place struct {
	store.Source
	converted
}

// sizeOf returns the size of a source's layer, which no annotation says.
func sizeOf(t *testing.T, src store.Source, d digest.Digest) int64 {
	t.Helper()
	p, ok := src.(place)
	if !ok {
		t.Fatalf("%T does not know sizes", src)
	}
	for _, o := range p.Outputs {
		for _, l := range o.Layers {
			if l.Source == d {
				return l.SourceSize
			}
		}
	}
	t.Fatalf("no layer was %s", d)
	return 0
}

// checkTurbo wants a turbo image of the files of three, whose layers are for
// image tools what their manifest and config say.
func checkTurbo(t *testing.T, src place, top ocispec.Descriptor) ocispec.Manifest {
	t.Helper()
	var m ocispec.Manifest
	read(t, src, top, &m)
	var c ocispec.Image
	read(t, src, m.Config, &c)
	for i, l := range m.Layers {
		if _, diffID := unpack(t, src, l); diffID != c.RootFS.DiffIDs[i] {
			t.Errorf("layer %d unpacks to %s, its diff ID is %s", i, diffID, c.RootFS.DiffIDs[i])
		}
		if l.MediaType != ocispec.MediaTypeImageLayerGzip || l.Annotations[convert.AnnotationVersion] != "0.1.0-turbo.ociv1" {
			t.Errorf("layer %d is %+v", i, l)
		}
	}
	checkDisk(t, disk(t, src, m))
	return m
}

// TestTurboToLayouts: both images of one run are what runs of their own make,
// with any number of workers.
func TestTurboToLayouts(t *testing.T) {
	img := makeImage(t, amd64, three...)
	out := filepath.Join(t.TempDir(), "out")
	both := mustConvert(t, "--source", "oci:"+img.Dir, "--target", "oci:"+out+":native", "--turbo-target", "oci:"+out+":turbo")
	native := mustConvert(t, "--source", "oci:"+img.Dir, "--no-upload", "--jobs", "1")
	if native.Digest != both.Outputs[0].Digest {
		t.Errorf("native is %s, with the other %s", native.Digest, both.Outputs[0].Digest)
	}
	for _, jobs := range []string{"1", "8"} {
		turbo := mustConvert(t, "--source", "oci:"+img.Dir, "--no-upload", "--turboOCI", "x", "--jobs", jobs)
		if turbo.Format != "turbo" || turbo.Digest != both.Outputs[1].Digest {
			t.Errorf("turbo by %s jobs is %s, with the other %s", jobs, turbo.Digest, both.Outputs[1].Digest)
		}
	}
	if o := both.Outputs[1].Originals; o == nil || o.Copied != 3 || o.Mounted != 0 || o.Size != img.Size() {
		t.Errorf("brought there: %+v", o)
	}
	src := place{openLayout(t, out, "turbo"), both}
	checkTurbo(t, src, resolve(t, src))
	var m ocispec.Manifest
	dst := openLayout(t, out, "native")
	read(t, dst, resolve(t, dst), &m)
	checkDisk(t, disk(t, dst, m))

	// Beside the source nothing has to be brought.
	beside := mustConvert(t, "--source", "oci:"+img.Dir, "--turboOCI", "turbo")
	if beside.Digest != both.Outputs[1].Digest || beside.Originals != nil {
		t.Errorf("beside the source: %+v", beside)
	}
}

func TestTurboToArchive(t *testing.T) {
	img := makeImage(t, amd64, three...)
	name := filepath.Join(t.TempDir(), "turbo.tar")
	s := mustConvert(t, "--source", "oci:"+img.Dir, "--turbo-target", "oci-archive:"+name)
	first := slurp(t, name)
	mustConvert(t, "--source", "oci:"+img.Dir, "--turbo-target", "oci-archive:"+name, "--jobs", "1")
	if !bytes.Equal(first, slurp(t, name)) {
		t.Error("another archive of the same")
	}
	r, err := archive.Open(name, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	src := place{r, s}
	checkTurbo(t, src, resolve(t, src))
}

// TestTurboSources: layers may be compressed by gzip or zstd or not at all,
// whatever their media type says.
func TestTurboSources(t *testing.T) {
	img := makeImage(t, amd64, three...)
	unzip := func(text []byte) []byte {
		z, err := gzip.NewReader(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		return plain
	}
	relayered(t, img, 1, unzip)
	img.Top = resolve(t, openLayout(t, img.Dir, "changed"))
	source := relayered(t, img, 2, func(text []byte) []byte {
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return z.EncodeAll(unzip(text), nil)
	})
	out := filepath.Join(t.TempDir(), "out")
	s := mustConvert(t, "--source", source, "--turbo-target", "oci:"+out)
	src := place{openLayout(t, out, ""), s}
	m := checkTurbo(t, src, resolve(t, src))
	for i, want := range []string{ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerZstd} {
		if got := m.Layers[i].Annotations[convert.AnnotationTargetType]; got != want {
			t.Errorf("layer %d maps into %s, want %s", i, got, want)
		}
	}
}

// downloads counts what is asked for of each blob.
type downloads struct {
	mu sync.Mutex
	n  map[string]int
}

func (d *downloads) count(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if isDownload(r) {
		d.mu.Lock()
		d.n[filepath.Base(r.URL.Path)]++
		d.mu.Unlock()
	}
	next.ServeHTTP(w, r)
}

// TestOneDownload: both formats and the copy of the originals are made of one
// download of each blob.
func TestOneDownload(t *testing.T) {
	from, to := e2e.StartRegistry(t), e2e.StartRegistry(t)
	img := makeImage(t, amd64, three...)
	from.Push(t, img, "lib/app", "v1")
	d := downloads{n: map[string]int{}}
	host := front(t, from, d.count)
	s := mustConvert(t, "--source", host+"/lib/app:v1", "--target", to.Host+"/app:native", "--turbo-target", to.Host+"/app:turbo", "--referrer")
	for _, l := range img.Layers {
		if n := d.n[l.Digest.String()]; n != 1 {
			t.Errorf("layer %s was asked for %d times", l.Digest, n)
		}
	}
	if o := s.Outputs[1].Originals; o == nil || o.Copied != 3 || o.Size != img.Size() {
		t.Errorf("brought there: %+v", o)
	}
	src := place{repository(t, s.Outputs[1].Target), s}
	m := checkTurbo(t, src, resolve(t, src))
	if m.ArtifactType != convert.Turbo.ArtifactType() || m.Subject.Digest != img.Top.Digest {
		t.Errorf("it refers to %+v as %s", m.Subject, m.ArtifactType)
	}
}

// TestAttach: the turbo image is found by the digest of its source.
func TestAttach(t *testing.T) {
	reg := e2e.StartRegistry(t)
	imgs := []e2e.Image{makeImage(t, amd64, three...), makeImage(t, ocispec.Platform{OS: "linux", Architecture: "arm64"}, three[:2]...)}
	merged, err := e2e.Merge(filepath.Join(t.TempDir(), "index"), imgs...)
	if err != nil {
		t.Fatal(err)
	}
	ref := reg.Push(t, merged, "lib/app", "v1")
	s := mustConvert(t, "--source", ref, "--attach")
	if s.Outputs[0].Originals != nil || s.Target != reg.Host+"/lib/app" {
		t.Errorf("attached %+v", s.Outputs[0])
	}
	for i, top := range []ocispec.Descriptor{merged.Top, imgs[0].Top, imgs[1].Top} {
		found := referrers(t, reg, "lib/app", top.Digest)
		if len(found) != 1 || found[0].ArtifactType != convert.Turbo.ArtifactType() {
			t.Fatalf("referrers of document %d: %+v", i, found)
		}
		if i == 0 && found[0].Digest != s.Digest {
			t.Errorf("%s refers to the index, not %s", found[0].Digest, s.Digest)
		}
		if i == 1 {
			checkTurbo(t, place{repository(t, ref), s}, found[0])
		}
	}
}

// referrers returns what a registry without a list of its own has under the
// tag that stands for it.
func referrers(t *testing.T, reg *e2e.Registry, repo string, d digest.Digest) []ocispec.Descriptor {
	t.Helper()
	r := repository(t, reg.Host+"/"+repo+":"+strings.Replace(d.String(), ":", "-", 1))
	var index ocispec.Index
	read(t, r, resolve(t, r), &index)
	return index.Manifests
}
