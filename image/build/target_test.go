// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

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
