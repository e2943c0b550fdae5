// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"

	filefetch "github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A layer opens its tar, compressed or not, from the beginning.
type layer func(t testing.TB) io.ReadCloser

// blob is a layer in memory.
func blob(p []byte) layer {
	return func(testing.TB) io.ReadCloser { return io.NopCloser(bytes.NewReader(p)) }
}

// fileLayer is a layer in a file.
func fileLayer(name string) layer {
	return func(t testing.TB) io.ReadCloser {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
}

// archived returns the tar that write makes.
func archived(t testing.TB, write func(w *tar.Writer) error) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(write(w), w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// A member is a tar entry and its content.
type member struct {
	tar.Header
	body string
}

// epoch is the time of every member that states none.
var epoch = time.Date(2023, time.November, 14, 22, 13, 20, 0, time.UTC)

// members returns the tar of the given entries.
func members(t testing.TB, all ...member) layer {
	t.Helper()
	return blob(archived(t, func(w *tar.Writer) error {
		for _, m := range all {
			if m.Typeflag == tar.TypeXGlobalHeader {
				if err := w.WriteHeader(&m.Header); err != nil {
					return err
				}
				continue
			}
			if m.Typeflag == 0 {
				m.Typeflag = tar.TypeReg
			}
			if m.ModTime.IsZero() {
				m.ModTime = epoch
			}
			if m.Mode == 0 {
				m.Mode = 0o755
			}
			m.Size = int64(len(m.body))
			if err := w.WriteHeader(&m.Header); err != nil {
				return err
			}
			if _, err := io.WriteString(w, m.body); err != nil {
				return err
			}
		}
		return nil
	}))
}

func file(name, body string) member { return member{tar.Header{Name: name}, body} }
func dir(name string) member        { return member{tar.Header{Name: name + "/", Typeflag: tar.TypeDir}, ""} }

func link(kind byte, name, target string) member {
	return member{tar.Header{Name: name, Typeflag: kind, Linkname: target}, ""}
}

// diffID returns the digest of the layer's tar.
func diffID(t testing.TB, l layer) digest.Digest {
	t.Helper()
	r := l(t)
	defer r.Close()
	d, err := build.Decompress(r)
	if err != nil {
		return "sha256:" + digest.Digest(strings.Repeat("0", 64))
	}
	defer d.Close()
	h := digest.SHA256.Digester()
	_, _ = io.Copy(h.Hash(), d) // what cannot be read has no diff ID
	return h.Digest()
}

// newChain returns a chain that the test closes, and checks that nothing of it
// is left.
func newChain(t testing.TB, size int64) *build.Chain {
	t.Helper()
	return chainOf(t, build.Options{VirtualSize: size})
}

func chainOf(t testing.TB, opts build.Options) *build.Chain {
	t.Helper()
	dir := t.TempDir()
	opts.Dir = dir
	c := build.New(opts)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("the chain left %v, %v", left, err)
		}
	})
	return c
}

// apply puts the layers on the chain and returns their files.
func apply(t testing.TB, c *build.Chain, layers ...layer) (files []string) {
	t.Helper()
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = diffID(t, l)
	}
	return applyAs(t, c, ids, layers...)
}

// applyAs puts the layers of the given diff IDs on the chain and returns their
// files.
func applyAs(t testing.TB, c *build.Chain, ids []digest.Digest, layers ...layer) (files []string) {
	t.Helper()
	dir := t.TempDir()
	for i, l := range layers {
		name := filepath.Join(dir, fmt.Sprintf("%d.lsmt", i))
		if err := push(t, c, l, ids[i], name); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		files = append(files, name)
	}
	return files
}

// push builds the file name of a layer and puts it on the chain.
func push(t testing.TB, c *build.Chain, l layer, id digest.Digest, name string) error {
	t.Helper()
	r := l(t)
	defer r.Close()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	err = c.Build(t.Context(), f, r, build.Layer{DiffID: id})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	b, err := filefetch.Open(name)
	if err != nil {
		return err
	}
	return c.Push(t.Context(), b, name)
}

// refused builds a layer that nobody wants.
func refused(ctx context.Context, c *build.Chain, r io.Reader, diffID digest.Digest) error {
	return c.Build(ctx, io.Discard, r, build.Layer{DiffID: diffID})
}

// sameAsContainerd asserts that the kernel sees on the disk what containerd
// makes of the layers in a directory.
func sameAsContainerd(t *testing.T, layers ...layer) {
	t.Helper()
	againstContainerd(t, func(ids []digest.Digest) (disk string) {
		return flat(t, applyAs(t, newChain(t, 2<<30), ids, layers...))
	}, layers...)
}

// againstContainerd asserts that the kernel sees on the disk that build makes, of layers
// of the given diff IDs, what containerd makes of the layers in a directory.
func againstContainerd(t *testing.T, build func(ids []digest.Digest) (disk string), layers ...layer) {
	t.Helper()
	need.Root(t)
	oracle := t.TempDir()
	begun := time.Now().UTC().Format("2006-01-02T15:04:05")
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = unpack(t, oracle, l)
	}
	want, err := e2e.ReadTree(oracle)
	if err != nil {
		t.Fatal(err)
	}
	got, err := e2e.ReadTree(mounted(t, build(ids)))
	if err != nil {
		t.Fatal(err)
	}
	forgetUnpacking(want, got, begun)
	if diff := want.Diff(got); len(diff) != 0 {
		t.Errorf("%d of %d files differ from what containerd makes, as\n%s", len(diff), len(want), strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

// unpack has containerd put the layer into dir, and returns its diff ID.
func unpack(t testing.TB, dir string, l layer) digest.Digest {
	t.Helper()
	r := l(t)
	defer r.Close()
	d, err := build.Decompress(r)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	id := digest.SHA256.Digester()
	content := io.TeeReader(d, id.Hash())
	if _, err := archive.Apply(t.Context(), dir, content); err != nil {
		t.Fatalf("containerd: %v", err)
	}
	if _, err := io.Copy(io.Discard, content); err != nil {
		t.Fatal(err)
	}
	return id.Digest()
}

// forgetUnpacking forgets all of the root but what it holds, and when
// directories changed whose time no layer says: in want that is now.
func forgetUnpacking(want, got e2e.Tree, begun string) {
	want["."], got["."] = e2e.Node{}, e2e.Node{}
	for path, w := range want {
		g, ok := got[path]
		if ok && w.Mode.IsDir() && w.MTime >= begun {
			w.MTime, g.MTime = "", ""
			want[path], got[path] = w, g
		}
	}
}

// imageLayers returns the layers of an image.
func imageLayers(i e2e.Image) (all []layer) {
	for _, l := range i.Layers {
		all = append(all, fileLayer(filepath.Join(i.Dir, "blobs", "sha256", l.Digest.Encoded())))
	}
	return all
}

// TestSynthetic: all that is odd about layers, over several of them.
func TestSynthetic(t *testing.T) { sameAsContainerd(t, imageLayers(e2e.Synthetic(t))...) }

// TestDebian: a real system, with deletions over it.
func TestDebian(t *testing.T) {
	need.Time(t, "it installs Debian")
	need.Root(t)
	sameAsContainerd(t, imageLayers(e2e.Debian(t))...)
}

// TestPackages: Python, Node.js and PostgreSQL, a layer for every package.
func TestPackages(t *testing.T) {
	need.Time(t, "it downloads Debian packages")
	need.Root(t)
	var layers []layer
	for _, name := range e2e.Packages(t) {
		layers = append(layers, fileLayer(name))
	}
	sameAsContainerd(t, layers...)
}

// TestGoldenTars: the layers that the reference was tried with.
func TestGoldenTars(t *testing.T) {
	golden, _ := need.Golden(t, "tars/l*.tar")
	var layers []layer
	for _, name := range []string{"l0", "l1", "l2"} {
		layers = append(layers, fileLayer(filepath.Join(golden, "tars", name+".tar")))
	}
	sameAsContainerd(t, layers...)
}

// TestPaths: names, links and whiteouts that lead astray.
func TestPaths(t *testing.T) {
	for name, layers := range map[string][]layer{
		"implicit parents":       {members(t, file("a/b/c/d", "x"))},
		"dots":                   {members(t, file("./a", "x"), file("b/../c", "y"), file("d//e/./f", "z"))},
		"above the root":         {members(t, file("../../a", "x"), file("/b", "y"), file("..", ""))},
		"parent is a link":       {members(t, dir("real"), link(tar.TypeSymlink, "alias", "real")), members(t, file("alias/x", "x"))},
		"parent links absolute":  {members(t, dir("real"), link(tar.TypeSymlink, "alias", "/real")), members(t, file("alias/x", "x"))},
		"parent links outside":   {members(t, link(tar.TypeSymlink, "alias", "../../../tmp")), members(t, file("alias/x", "x"))},
		"parent links to a link": {members(t, link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "c/d"), file("a/x", "x"))},
		"whiteout by a link":     {members(t, file("real/x", "x"), link(tar.TypeSymlink, "alias", "real")), members(t, file("alias/.wh.x", ""))},
		"whiteout of a link":     {members(t, file("real/x", "x"), link(tar.TypeSymlink, "alias", "real")), members(t, file(".wh.alias", ""))},
		"link to a lower file":   {members(t, file("a", "x")), members(t, link(tar.TypeLink, "b", "a"))},
		"link by a link":         {members(t, file("real/x", "x"), link(tar.TypeSymlink, "alias", "real"), link(tar.TypeLink, "y", "alias/x"))},
		"link to a link":         {members(t, link(tar.TypeSymlink, "a", "nowhere"), link(tar.TypeLink, "b", "a"))},
		"directory over a link":  {members(t, dir("real"), link(tar.TypeSymlink, "a", "real")), members(t, dir("a"), file("a/x", "x"))},
		"opaque keeps its own":   {members(t, file("d/old", "x"), file("d/sub/old", "x")), members(t, file("d/new", "y"), dir("d/sub"), file("d/sub/new", "y"), file("d/.wh..wh..opq", ""))},
		"opaque first":           {members(t, file("d/old", "x")), members(t, file("d/.wh..wh..opq", ""), file("d/new", "y"))},
		"opaque twice":           {members(t, file("d/old", "x")), members(t, file("d/.wh..wh..opq", ""), file("d/a", "y"), file("d/.wh..wh..opq", ""))},
		"opaque of nothing":      {members(t, file("new/.wh..wh..opq", ""))},
		"whiteout of its own":    {members(t, file("a", "x"), file(".wh.a", ""), file("a", "y"))},
		"again and again":        {members(t, file("a", "x"), file("a", "yy"), dir("a"), file("a/b", "z"), file("a", "zz"))},
		"global header":          {members(t, member{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}}, file("a", "x"))},
		"nothing":                {members(t)},
	} {
		t.Run(name, func(t *testing.T) { sameAsContainerd(t, layers...) })
	}
}

// TestManyLayers: as many as images have, each with a deletion.
func TestManyLayers(t *testing.T) {
	layers := make([]layer, 70)
	for i := range layers {
		layers[i] = members(t, file(fmt.Sprintf("dir/file%d", i), fmt.Sprint(i)), file(fmt.Sprintf("dir/.wh.file%d", i-3), ""))
	}
	sameAsContainerd(t, layers...)
}

func run(t testing.TB, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Command(t, program), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}
