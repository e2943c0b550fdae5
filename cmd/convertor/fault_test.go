// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"crypto/tls"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/convert/layout"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// changed returns a copy of the image's layout whose manifest is changed.
func changed(t *testing.T, i e2e.Image, change func(m *ocispec.Manifest)) string {
	t.Helper()
	w, err := layout.Create(i.Dir, "changed")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var m ocispec.Manifest
	read(t, w, i.Top, &m)
	change(&m)
	if err := w.Tag(t.Context(), push(t, w, m.MediaType, m)); err != nil {
		t.Fatal(err)
	}
	return "oci:" + i.Dir + ":changed"
}

// TestBadImages: the error names the layer and the cause, and the target does
// not come to be.
func TestBadImages(t *testing.T) {
	blob := func(i e2e.Image, n int) string {
		return filepath.Join(i.Dir, "blobs", "sha256", i.Layers[n].Digest.Encoded())
	}
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, i e2e.Image) (source string)
		want  []string
	}{
		"wrong digest": {func(t *testing.T, i e2e.Image) string {
			text := slurp(t, blob(i, 1))
			text[4]++ // the time in the gzip header, which unpacks all the same
			spill(t, blob(i, 1), text)
			return "oci:" + i.Dir
		}, []string{"layer sha256:", "the content of", "has digest"}},
		"wrong diff ID": {func(t *testing.T, i e2e.Image) string {
			return changed(t, i, func(m *ocispec.Manifest) { m.Layers[1] = m.Layers[0] })
		}, []string{"layer sha256:", "content differs from diff ID"}},
		"cut": {func(t *testing.T, i e2e.Image) string {
			text := slurp(t, blob(i, 1))
			spill(t, blob(i, 1), text[:len(text)/2])
			return "oci:" + i.Dir
		}, []string{"layer sha256:", "bytes, should have"}},
		"no gzip inside": {func(t *testing.T, i e2e.Image) string {
			text := slurp(t, blob(i, 0))
			text[len(text)/2] ^= 0xff
			spill(t, blob(i, 0), text)
			return "oci:" + i.Dir
		}, []string{"layer sha256:"}},
		"gzip cut": {func(t *testing.T, i e2e.Image) string {
			return relayered(t, i, 1, func(text []byte) []byte { return text[:len(text)-20] })
		}, []string{"layer sha256:", "decompress gzip: unexpected EOF"}},
		"bit flipped": {func(t *testing.T, i e2e.Image) string {
			return relayered(t, i, 0, func(text []byte) []byte { text[len(text)-6] ^= 1; return text })
		}, []string{"layer sha256:", "gzip: invalid checksum"}},
		"no tar": {func(t *testing.T, i e2e.Image) string {
			return relayered(t, i, 0, func([]byte) []byte { return []byte(strings.Repeat("no tar ", 1000)) })
		}, []string{"layer sha256:", "read tar entry 0"}},
		"unsafe": {func(t *testing.T, _ e2e.Image) string {
			return "oci:" + makeImage(t, amd64, three[0], files(map[string]string{"etc/.wh...": ""})).Dir
		}, []string{"layer sha256:", `"etc/.wh..."`, "unsafe layer"}},
		"link to nothing": {func(t *testing.T, _ e2e.Image) string {
			return "oci:" + makeImage(t, amd64, linkTo("../../../../etc/passwd")).Dir
		}, []string{"layer sha256:", `hard link to "../../../../etc/passwd"`}},
		"media type": {func(t *testing.T, i e2e.Image) string {
			return changed(t, i, func(m *ocispec.Manifest) { m.Layers[1].MediaType += "+encrypted" })
		}, []string{"layer 1 has media type", "encrypted"}},
		"layer missing": {func(t *testing.T, i e2e.Image) string {
			if err := os.Remove(blob(i, 2)); err != nil {
				t.Fatal(err)
			}
			return "oci:" + i.Dir
		}, []string{"not found"}},
		"no such tag": {func(_ *testing.T, i e2e.Image) string { return "oci:" + i.Dir + ":none" }, []string{`no image "none"`}},
		"no layout":   {func(t *testing.T, _ e2e.Image) string { return "oci:" + t.TempDir() }, []string{"is no OCI layout"}},
	} {
		t.Run(name, func(t *testing.T) {
			source := tt.spoil(t, makeImage(t, amd64, three...))
			dir := t.TempDir()
			_, status, errs := convertor(t.Context(), t, "--source", source, "--target", "oci:"+dir+"/out", "--dir", dir+"/work")
			if status != exitFailure {
				t.Errorf("status %d", status)
			}
			for _, want := range tt.want {
				if !strings.Contains(errs, want) {
					t.Errorf("error without %q: %s", want, errs)
				}
			}
			checkEmpty(t, dir)
		})
	}
}

// relayered returns a copy of the image's layout in which layer n is something
// else, as its manifest says.
func relayered(t *testing.T, i e2e.Image, n int, change func(text []byte) []byte) string {
	t.Helper()
	text := change(slurp(t, filepath.Join(i.Dir, "blobs", "sha256", i.Layers[n].Digest.Encoded())))
	d := digest.FromBytes(text)
	spill(t, filepath.Join(i.Dir, "blobs", "sha256", d.Encoded()), text)
	return changed(t, i, func(m *ocispec.Manifest) { m.Layers[n].Digest, m.Layers[n].Size = d, int64(len(text)) })
}

// linkTo is a layer of a hard link.
func linkTo(target string) e2e.Layer {
	return func(w *tar.Writer) error {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: "link", Linkname: target})
	}
}

func slurp(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func spill(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if name != dir {
			t.Errorf("left behind: %s", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDiskFull: neither the work directory nor the target has room enough.
func TestDiskFull(t *testing.T) {
	need.Root(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	noise := fetchertest.Content(4<<20, 7)
	img := makeImage(t, amd64, files(map[string]string{"small": "x"}), files(map[string]string{"noise": string(noise)}))
	for name, args := range map[string][]string{
		"work":    {"--target", "oci:" + filepath.Join(t.TempDir(), "out"), "--dir", small + "/work"},
		"layout":  {"--target", "oci:" + small + "/out", "--dir", filepath.Join(t.TempDir(), "work")},
		"archive": {"--target", "oci-archive:" + small + "/out.tar", "--dir", filepath.Join(t.TempDir(), "work")},
	} {
		t.Run(name, func(t *testing.T) {
			_, status, errs := convertor(t.Context(), t, append([]string{"--source", "oci:" + img.Dir}, args...)...)
			if status != exitFailure || !strings.Contains(errs, "no space left") || !strings.Contains(errs, "layer "+img.Layers[1].Digest.String()) {
				t.Errorf("status %d: %s", status, errs)
			}
			checkEmpty(t, small)
		})
	}
}

func TestUsage(t *testing.T) {
	for line, want := range map[string]int{
		"--help":                               0,
		"--version":                            0,
		"":                                     exitUsage,
		"stray":                                exitUsage,
		"--nope":                               exitUsage,
		"--source oci:a":                       exitUsage,
		"-r h/r -o b":                          exitUsage,
		"-r h/r -i a":                          exitUsage,
		"-r h/r -i a -o a":                     exitUsage,
		"-r h/r -i a --target b":               exitUsage,
		"-r h/r -i a -o b --turboOCI b":        exitUsage,
		"-r h/r -i a --turboOCI a":             exitUsage,
		"-r h/r -i a --turboOCI b --fastoci c": exitUsage,
		"-r h/r -i a --turboOCI b --attach":    exitUsage,
		"-r h/r -i a --turboOCI b --flatten":   exitUsage,
		"-r h/r -i a --turbo-target h/r:b":     exitUsage,
		"-r h/r -i a -o b --fstype xfs":        exitUsage,
		"-r h/r -i a -o b --fstype erofs --mkfs=false":                           exitUsage,
		"--source oci:a --turboOCI b --turbo-target oci:b":                       exitUsage,
		"--source oci-archive:a --turboOCI b":                                    exitUsage,
		"--source oci:a --attach":                                                exitUsage,
		"--source oci:a --target oci-archive:b:x --turbo-target oci-archive:b:y": exitUsage,
		"-r h/r -i a -o b --bs 5":                                                exitUsage,
		"-r h/r -i a -o b --vsize 0":                                             exitUsage,
		"-r h/r -i a -o b --jobs 0":                                              exitUsage,
		"-r h/r -i a -o b --level worst":                                         exitUsage,
		"-r h/r -i a -o b --algorithm gzip":                                      exitUsage,
		"-r h/r -i a -o b --platform //":                                         exitUsage,
		"-r h/r -i a -o b --db-type oracle":                                      exitUsage,
		"-r h/r -i a -o b -u me":                                                 exitUsage,
		"-r h/r -i a -o b --client-cert x":                                       exitUsage,
		"-r h/r -i a -o b --root-ca /none":                                       exitFailure,
		"--source oci:a --target oci:b --db-str x":                               exitUsage,
		"--source h.io/a --target o.io/b -u me:pw":                               exitUsage,
		"--source oci:a --target docker-archive:b":                               exitUsage,
		"--source oci:/none --target oci:b":                                      exitFailure,
		"--source oci-archive:/dev/null --target oci:b":                          exitFailure,
		"--source docker-archive:/dev/zero --target oci:b":                       exitFailure,
	} {
		dir := t.TempDir()
		t.Chdir(dir)
		var out strings.Builder
		if got := report(t.Context(), run(t.Context(), strings.Fields(line), &out, &out), &out); got != want {
			t.Errorf("convertor %s: status %d, want %d\n%s", line, got, want, &out)
		}
		checkEmpty(t, dir)
	}
}

// TestDump: what would be pushed is written, and nothing else is.
func TestDump(t *testing.T) {
	img := makeImage(t, amd64, three...)
	dir := t.TempDir()
	s := mustConvert(t, "--source", "oci:"+img.Dir, "--no-upload", "--dump-manifest", "--dir", dir)
	manifest := slurp(t, filepath.Join(dir, "manifest.json"))
	if digest.FromBytes(manifest) != s.Digest {
		t.Errorf("manifest.json is %s, not %s", digest.FromBytes(manifest), s.Digest)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	if got := digest.FromBytes(slurp(t, filepath.Join(dir, "config.json"))); got != m.Config.Digest {
		t.Errorf("config.json is %s, not %s", got, m.Config.Digest)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("the directory has %v, %v", left, err)
	}

	merged, err := e2e.Merge(filepath.Join(t.TempDir(), "index"), img)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	s = mustConvert(t, "--source", "oci:"+merged.Dir, "--no-upload", "--dump-manifest", "--dir", dir)
	if got := digest.FromBytes(slurp(t, filepath.Join(dir, "index.json"))); got != s.Digest {
		t.Errorf("index.json is %s, not %s", got, s.Digest)
	}
	if found, err := filepath.Glob(filepath.Join(dir, "*/config.json")); err != nil || len(found) != 1 {
		t.Errorf("configs %v, %v", found, err)
	}
}

// TestDockerArchive converts what docker save writes.
func TestDockerArchive(t *testing.T) {
	img := makeImage(t, amd64, three...)
	name := filepath.Join(t.TempDir(), "saved.tar")
	save(t, img, name, "example/app:v1")
	want := mustConvert(t, "--source", "oci:"+img.Dir, "--no-upload")
	for _, ref := range []string{"docker-archive:" + name, "docker-archive:" + name + ":docker.io/example/app:v1"} {
		s := mustConvert(t, "--source", ref, "--no-upload")
		for i, l := range s.Layers {
			if l.Digest != want.Layers[i].Digest {
				t.Errorf("%s: layer %d is %s, want %s", ref, i, l.Digest, want.Layers[i].Digest)
			}
		}
	}
	if _, status, errs := convertor(t.Context(), t, "--source", "docker-archive:"+name+":other", "--no-upload"); status != exitFailure || !strings.Contains(errs, "example/app:v1") {
		t.Errorf("another name: status %d, %s", status, errs)
	}
}

// save writes the image as docker save does, the layers compressed.
func save(t *testing.T, i e2e.Image, name, tag string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(name string, text []byte) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d digest.Digest) []byte { return slurp(t, filepath.Join(i.Dir, "blobs", "sha256", d.Encoded())) }
	var m ocispec.Manifest
	read(t, openLayout(t, i.Dir, ""), i.Top, &m)
	entry := map[string]any{"Config": "config.json", "RepoTags": []string{tag}}
	var layers []string
	add("config.json", blob(m.Config.Digest))
	for _, l := range m.Layers {
		add(l.Digest.Encoded()+"/layer.tar", blob(l.Digest))
		link := l.Digest.Encoded() + "/link.tar"
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: link, Linkname: "layer.tar"}); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, link)
	}
	entry["Layers"] = layers
	text, err := json.Marshal([]any{entry})
	if err != nil {
		t.Fatal(err)
	}
	add("manifest.json", text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLogin: credentials and certificates get to the registry.
func TestLogin(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Username: "me", Password: "a:b", TLS: &tls.Config{MinVersion: tls.VersionTLS12}})
	img := makeImage(t, amd64, three...)
	var m ocispec.Manifest
	text := read(t, openLayout(t, img.Dir, ""), img.Top, &m)
	for _, d := range append(m.Layers, m.Config) {
		reg.AddBlob("lib/app", slurp(t, filepath.Join(img.Dir, "blobs", "sha256", d.Digest.Encoded())))
	}
	reg.AddManifest("lib/app", "v1", m.MediaType, []byte(text))
	ca := filepath.Join(t.TempDir(), "ca.crt")
	spill(t, ca, reg.CertificatePEM())
	for _, args := range [][]string{{"--root-ca", ca}, {"--cert-dir", filepath.Dir(ca)}, {"--insecure"}} {
		s := mustConvert(t, append(args, "--source", reg.Host()+"/lib/app:v1", "--no-upload", "-u", "me:a:b")...)
		if len(s.Layers) != 3 {
			t.Errorf("%v: %+v", args, s)
		}
	}
	config := t.TempDir()
	spill(t, filepath.Join(config, "config.json"), []byte(`{"auths":{"`+reg.Host()+`":{"username":"me","password":"a:b"}}}`))
	t.Setenv("DOCKER_CONFIG", config)
	mustConvert(t, "--source", reg.Host()+"/lib/app:v1", "--no-upload", "--insecure")
	if _, status, errs := convertor(t.Context(), t, "--source", reg.Host()+"/lib/app:v1", "--no-upload", "--insecure", "-u", "me:x"); status != exitFailure || !strings.Contains(errs, "not authorized") {
		t.Errorf("a wrong password: status %d, %s", status, errs)
	}
}
