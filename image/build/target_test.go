// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/fetcher"
	filefetch "github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A turbo layer is the files of one whose content is in its tar.
type turbo struct{ sealed, tar string }

// absent is a target that nobody may read.
type absent struct{}

func (absent) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, errors.New("the target of a lower layer was read")
}
func (absent) Size() int64  { return 1 << 62 }
func (absent) Close() error { return nil }

// applyTarget puts the layers of the given diff IDs on a new chain whose
// targets cannot be read, and returns their disk with the real ones.
func applyTarget(t testing.TB, opts build.Options, ids []digest.Digest, layers ...layer) *lsmt.Stack {
	t.Helper()
	opts.Target = true
	c, dir := chainOf(t, opts), t.TempDir()
	var opened []*lsmt.Layer
	for i, l := range layers {
		x := turbo{filepath.Join(dir, fmt.Sprint(i, ".lsmt")), filepath.Join(dir, fmt.Sprint(i, ".tar"))}
		if err := errors.Join(x.build(t, c, l, ids[i]), os.WriteFile(x.tar, uncompressed(t, l), 0o600)); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if err := c.PushTarget(t.Context(), blobOf(t, x.sealed), absent{}, x.sealed); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		opened = append(opened, x.open(t))
	}
	return merge(t, opened)
}

func (x turbo) build(t testing.TB, c *build.Chain, l layer, id digest.Digest) error {
	t.Helper()
	r := l(t)
	defer r.Close()
	f, err := os.Create(x.sealed)
	if err != nil {
		return err
	}
	return errors.Join(c.Build(t.Context(), f, r, build.Layer{DiffID: id}), f.Close())
}

func (x turbo) open(t testing.TB) *lsmt.Layer {
	t.Helper()
	l, err := lsmt.OpenWithTarget(t.Context(), blobOf(t, x.sealed), blobOf(t, x.tar))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func blobOf(t testing.TB, name string) fetcher.Blob {
	t.Helper()
	b, err := filefetch.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// uncompressed returns the tar of a layer that may be compressed.
func uncompressed(t testing.TB, l layer) []byte {
	t.Helper()
	r := l(t)
	defer r.Close()
	d, err := build.Decompress(r)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A reader reads files of a disk.
type reader interface {
	ReadDir(ctx context.Context, dir vfs.Ino) iter.Seq2[vfs.DirEntry, error]
	Stat(ctx context.Context, ino vfs.Ino) (vfs.Inode, error)
	ReadAt(ctx context.Context, ino vfs.Ino, p []byte, off int64) (int, error)
}

// contents returns the content of the regular files of a disk by their paths,
// and asserts that their last blocks end in zeros, which mmap shows.
func contents(t testing.TB, disk backend.Volume) map[string]string {
	t.Helper()
	var r reader
	root := ext4.RootIno
	r, err := ext4.NewReader(t.Context(), disk)
	if err != nil {
		e, err := erofs.NewReader(t.Context(), disk)
		if err != nil {
			t.Fatal(err)
		}
		r, root = e, e.Root()
	}
	all := make(map[string]string)
	var walk func(dir vfs.Ino, path string)
	walk = func(dir vfs.Ino, path string) {
		for e, err := range r.ReadDir(t.Context(), dir) {
			if err != nil {
				t.Fatal(err)
			}
			switch name := path + e.Name; e.Type {
			case vfs.TypeDirectory:
				walk(e.Ino, name+"/")
			case vfs.TypeRegular:
				all[name] = content(t, r, disk, e.Ino)
			}
		}
	}
	walk(root, "")
	return all
}

func content(t testing.TB, r reader, disk backend.Volume, ino vfs.Ino) string {
	t.Helper()
	st, err := r.Stat(t.Context(), ino)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, st.Size)
	if n, err := r.ReadAt(t.Context(), ino, p, 0); n < len(p) {
		t.Fatalf("read %d bytes: %v", len(p), err)
	}
	block, in := make([]byte, 4096), st.Size%4096
	off := offset(t, r, ino, st.Size-in)
	if in == 0 || off < 0 || off%4096 != 0 { // it may be with the inode
		return string(p)
	}
	if _, err := disk.ReadAt(t.Context(), block, off); err != nil {
		t.Fatal(err)
	}
	if len(bytes.Trim(block[in:], "\x00")) > 0 {
		t.Errorf("behind the end of a file of %d bytes is %.50q", st.Size, block[in:])
	}
	return string(p)
}

// offset returns where on the disk byte off of a file is, -1 if it is nowhere.
func offset(t testing.TB, r reader, ino vfs.Ino, off int64) int64 {
	t.Helper()
	var offs []int64
	var err error
	switch r := r.(type) {
	case *ext4.Reader:
		all, xerr := r.Extents(t.Context(), ino, off, 1)
		for _, e := range all {
			offs = append(offs, e.Off)
		}
		err = xerr
	case *erofs.Reader:
		all, xerr := r.Extents(t.Context(), ino, off, 1)
		for _, e := range all {
			offs = append(offs, e.Off)
		}
		err = xerr
	}
	if err != nil {
		t.Fatal(err)
	}
	return append(offs, -1)[0]
}

// sameAsStored asserts that files read the same, whether their content is in
// the layers or in the tars, and returns them.
func sameAsStored(t testing.TB, size int64, layers ...layer) map[string]string {
	t.Helper()
	return sameOn(t, []string{build.Ext4, build.EROFS}, size, layers...)
}

// sameOn is sameAsStored on some types of file systems.
func sameOn(t testing.TB, fsTypes []string, size int64, layers ...layer) map[string]string {
	t.Helper()
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = diffID(t, l)
	}
	want := contents(t, stack(t, applyAs(t, newChain(t, size), ids, layers...)))
	for _, name := range fsTypes {
		mapped := applyTarget(t, build.Options{VirtualSize: size, FSType: name}, ids, layers...)
		flatten(t, mapped)
		if diff := cmp.Diff(want, contents(t, mapped)); diff != "" {
			t.Errorf("%s: what is in the tars (+) differs from what is in layers (-)\n%s", name, diff)
		}
	}
	return want
}

// targetSameAsContainerd is sameAsContainerd of layers whose content is in the
// tars.
func targetSameAsContainerd(t *testing.T, layers ...layer) {
	t.Helper()
	for _, name := range []string{build.Ext4, build.EROFS} {
		t.Run(name, func(t *testing.T) {
			againstContainerd(t, func(ids []digest.Digest) (disk string) {
				return flatten(t, applyTarget(t, build.Options{VirtualSize: 2 << 30, FSType: name}, ids, layers...))
			}, layers...)
		})
	}
}

// TestTargetSynthetic: all that is odd about layers, over several of them.
func TestTargetSynthetic(t *testing.T) {
	need.Root(t)
	targetSameAsContainerd(t, imageLayers(e2e.Synthetic(t))...)
}

// TestTargetGoldenTars: the layers that the reference was tried with.
func TestTargetGoldenTars(t *testing.T) {
	golden, _ := need.Golden(t, "tars/*.tar")
	tars := func(names ...string) (layers []layer) {
		for _, name := range names {
			layers = append(layers, fileLayer(filepath.Join(golden, "tars", name+".tar")))
		}
		return layers
	}
	t.Run("three", func(t *testing.T) { targetSameAsContainerd(t, tars("l0", "l1", "l2")...) })
	t.Run("sparse-pax1", func(t *testing.T) { targetSameAsContainerd(t, tars("sparse-pax1")...) })
	t.Run("sparse-gnu", func(t *testing.T) { sameAsStored(t, 64<<20, tars("sparse-gnu")...) }) // containerd does not know it
}

// TestTargetNames: what comes before a body does not shift it.
func TestTargetNames(t *testing.T) {
	long := strings.Repeat("long/", 60)
	got := sameAsStored(t, 64<<20, members(t,
		member{tar.Header{Name: "global", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""},
		member{tar.Header{Name: long + "pax", Format: tar.FormatPAX}, noise(10_000)},
		member{tar.Header{Name: long + "gnu", Format: tar.FormatGNU}, noise(5000)},
		member{tar.Header{Name: "xattr", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 3000)}}, noise(512)},
		member{tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: long}, ""},
		file("last", "x")))
	if len(got) != 4 || got[long+"gnu"] != noise(5000) {
		t.Errorf("%d files", len(got))
	}
}

// TestTargetHoldsContent: of content that is in the tar the layer has nothing,
// and the chain reads none.
func TestTargetHoldsContent(t *testing.T) {
	l := members(t, file("a", noise(8<<20)), file("zeros", string(make([]byte, 1<<20))))
	for _, name := range []string{build.Ext4, build.EROFS} {
		opts := build.Options{VirtualSize: 64 << 20, Target: true, FSType: name}
		layer := built(t, opts, l)
		if len(layer) > 100<<10 {
			t.Errorf("%s: the layer has %d bytes", name, len(layer))
		}
		if again := built(t, opts, l); !bytes.Equal(layer, again) {
			t.Errorf("%s: the layer differs when it is built again", name)
		}
	}
}

// built returns a bottom layer.
func built(t testing.TB, opts build.Options, l layer) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := chainOf(t, opts).Build(t.Context(), &buf, l(t), build.Layer{DiffID: diffID(t, l)}); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestTargetPadding: what a tar has behind a file, where zeros should be, is not
// seen. One that ends right behind a file is fine.
func TestTargetPadding(t *testing.T) {
	for _, size := range []int{1, 100, 511, 513, 4095, 4097, 9000, 1<<20 + 5, 3<<20 + 4096 - 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			body := noise(size)
			p := plain(t, members(t, file("a", body), file("b", "x")))
			end := 512 + size
			for _, p := range [][]byte{soiled(p, end, end), soiled(p, end, (end+511)&^511-1), p[:end], p[:end+1]} {
				if got := sameAsStored(t, 64<<20, blob(p)); got["a"] != body {
					t.Errorf("%d bytes differ", len(got["a"]))
				}
			}
		})
	}
}

// soiled returns p with the bytes from one to another set.
func soiled(p []byte, from, to int) []byte {
	p = bytes.Clone(p)
	for i := from; i <= to; i++ {
		p[i] = 0xee
	}
	return p
}

// TestTargetReusesBlocks: files over the blocks of one that was deleted show
// nothing of it. EROFS takes new ones always.
func TestTargetReusesBlocks(t *testing.T) {
	replaced := []member{file(".wh.old", "")}
	for i := range 40 {
		replaced = append(replaced, file(fmt.Sprint("new", i), noise(100_000+i)))
	}
	for name, layers := range map[string][]layer{
		"of a lower layer": {members(t, file("old", strings.Repeat("old!", 1<<20))), members(t, replaced...)},
		"of the layer":     {members(t, append([]member{file("old", strings.Repeat("old!", 1<<20))}, replaced...)...)},
		"that were stored": {sparse(t, 4<<20), members(t, replaced...)},
	} {
		t.Run(name, func(t *testing.T) { sameOn(t, []string{build.Ext4}, 7<<20, layers...) })
	}
}

// sparse returns a layer of a file old in GNU's sparse format.
func sparse(t testing.TB, size int) layer {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "old"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(strings.Repeat("old!", size/4))
	if err = errors.Join(err, f.Truncate(int64(size)+1<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "l.tar")
	run(t, "tar", "-cSf", archive, "-C", dir, "old")
	return fileLayer(archive)
}

// TestTargetSparse: all of GNU's sparse formats.
func TestTargetSparse(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(30) { // too many for one header
		if _, err := f.WriteAt([]byte(noise(5000)), i*100_000); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Close(), os.WriteFile(filepath.Join(dir, "plain"), []byte(noise(5000)), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"} {
		t.Run(format, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "l.tar")
			args := []string{"-cSf", archive, "-C", dir, format, "plain", "big"}
			if !strings.Contains(format, "gnu") {
				args = append([]string{"--format=posix"}, args...)
			}
			run(t, "tar", args...)
			sameAsStored(t, 64<<20, fileLayer(archive))
		})
	}
}

// TestKind: a layer's compression is told.
func TestKind(t *testing.T) {
	p := plain(t, members(t, file("a", "x")))
	for kind, c := range map[build.Kind][]byte{build.Plain: p, build.Gzip: gzipped(t, p), build.Zstd: zstandard(t, p)} {
		c := blob(c)
		got, err := newChain(t, 64<<20).BuildTarget(t.Context(), io.Discard, c(t), build.Layer{DiffID: diffID(t, c)})
		if got != kind || err != nil {
			t.Errorf("kind %q, %v, want %q", got, err, kind)
		}
	}
}

func TestUnknownFSType(t *testing.T) {
	l := members(t)
	err := refused(t.Context(), chainOf(t, build.Options{FSType: "xfs"}), l(t), diffID(t, l))
	if err == nil || !strings.Contains(err.Error(), `"xfs"`) {
		t.Errorf("error %v", err)
	}
}

// FuzzTarget: whatever a tar is, its files are the same in it and in the layer.
func FuzzTarget(f *testing.F) {
	f.Add(plain(f, members(f, file("a", "x"), dir("b"), file("b/c", noise(5000)), link(tar.TypeLink, "d", "a"))))
	f.Add(soiled(plain(f, members(f, file("a", noise(600)))), 512+600, 512+700))
	f.Add(plain(f, sparse(f, 10_000)))
	f.Fuzz(func(t *testing.T, p []byte) {
		stored, mapped := backendtest.NewMemVolume(8<<20), targeted{backendtest.NewMemVolume(8 << 20), p}
		want := applyTo(t, stored, build.Apply, p)
		got := applyTo(t, mapped, build.ApplyTarget, p)
		switch {
		case errors.Is(got, syscall.ENOSPC): // zeros are not stored, but mapped
		case (got == nil) != (want == nil):
			t.Errorf("error %v, and %v when it is stored", got, want)
		case got == nil:
			if diff := cmp.Diff(contents(t, stored), contents(t, mapped)); diff != "" {
				t.Error(diff)
			}
		}
	})
}

// A targeted volume copies what is mapped from its target, so that it can be
// read.
type targeted struct {
	*backendtest.MemVolume
	target []byte
}

var _ vfs.ContentMapper = targeted{}

func (v targeted) MapContent(ctx context.Context, off, n, at int64) error {
	if at%512 != 0 {
		return fmt.Errorf("mapped from %d", at)
	}
	p := make([]byte, n)
	copy(p, v.target[at:])
	_, err := v.WriteAt(ctx, p, off)
	return err
}

// applyTo applies a tar to a new file system on v.
func applyTo(t *testing.T, v backend.Writer, apply func(context.Context, vfs.FileSystem, io.Reader) error, tar []byte) error {
	t.Helper()
	if err := ext4.Format(t.Context(), v, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	failed := apply(t.Context(), fsys, bytes.NewReader(tar))
	if err := fsys.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return failed
}
