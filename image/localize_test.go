// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A packed layer is a TurboOCI layer as a registry has it, in a directory that
// stands for that.
type packed struct {
	t    *testing.T
	repo string
	spec.Lower
}

// newPacked packs files of golden layers, by the names to give them.
func newPacked(t *testing.T, names map[string]string) *packed {
	t.Helper()
	dir, files := need.Golden(t, "turbo/*", "erofs/*", "tars/l0.tar*")
	var blob bytes.Buffer
	z := gzip.NewWriter(&blob)
	w := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		text, err := os.ReadFile(files[names[name]].Path)
		if err != nil {
			t.Fatal(err)
		}
		err = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text))})
		if _, e := w.Write(text); err != nil || e != nil {
			t.Fatal(err, e)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	p := &packed{t, t.TempDir(), spec.Lower{
		Dir: t.TempDir(), Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len()),
		TargetFile: filepath.Join(dir, "tars/l0.tar.gz"), TurboMeta: []string{"erofs.fs.meta", "ext4.fs.meta"},
	}}
	p.store(blob.Bytes())
	return p
}

func (p *packed) blob() string { return filepath.Join(p.repo, p.Digest.String()) }

func (p *packed) store(blob []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.blob(), blob, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *packed) open() (*image.Image, error) {
	return image.Open(p.t.Context(), &spec.Volume{RepoBlobURL: "file://" + p.repo, Lowers: []spec.Lower{p.Lower}}, local)
}

// wantFiles asks that there is nothing else in the layer's directory.
func (p *packed) wantFiles(want ...string) {
	p.t.Helper()
	entries, err := os.ReadDir(p.Dir)
	if err != nil {
		p.t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		p.t.Errorf("its directory has %q, want %q", got, want)
	}
}

// TestOpenPacked: a layer is unpacked once, and then needs its registry no more.
func TestOpenPacked(t *testing.T) {
	_, files := need.Golden(t, "turbo/*", "erofs/*")
	for _, tc := range []struct {
		name   string
		files  map[string]string
		volume string // the golden layer that shows
		unpack []string
	}{
		{
			"ext4",
			map[string]string{"ext4.fs.meta": "turbo/l0.ext4.fs.meta", "gzip.meta": "turbo/l0.gzip.meta"},
			"turbo/l0.ext4.fs.meta",
			[]string{"ext4.fs.meta", "gzip.meta"},
		},
		{
			"both",
			map[string]string{"ext4.fs.meta": "turbo/l0.ext4.fs.meta", "erofs.fs.meta": "erofs/l0.erofs.fs.meta", "gzip.meta": "erofs/l0.gzip.meta"},
			"erofs/l0.erofs.fs.meta",
			[]string{"erofs.fs.meta", "ext4.fs.meta", "gzip.meta"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPacked(t, tc.files)
			for range 2 {
				i, err := p.open()
				if err != nil {
					t.Fatal(err)
				}
				if got, want := volumeHash(t, i), files[tc.volume].Volume; got != want {
					t.Errorf("got volume %s, want %s", got, want)
				}
				if err := i.Close(); err != nil {
					t.Error(err)
				}
				p.wantFiles(tc.unpack...)
				_ = os.Remove(p.blob())
			}
		})
	}
}

// TestOpenPackedFails: nothing is left of a layer that is not as it should be.
func TestOpenPackedFails(t *testing.T) {
	ext4 := map[string]string{"ext4.fs.meta": "turbo/l0.ext4.fs.meta", "gzip.meta": "turbo/l0.gzip.meta"}
	for _, tc := range []struct {
		name   string
		change func(p *packed)
		want   string
	}{
		{"gone", func(p *packed) { _ = os.Remove(p.blob()) }, "not found"},
		{"other content", func(p *packed) {
			b, err := os.ReadFile(p.blob())
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			p.store(b)
		}, ""},
		{"other size", func(p *packed) { p.Size++ }, "bytes, "},
		{"huge", func(p *packed) { p.Size = 1 << 40 }, "more than"},
		{"another file system", func(p *packed) { p.TurboMeta = []string{"erofs.fs.meta"} }, "none of"},
		{"no directory", func(p *packed) { p.Dir += "/gone" }, "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPacked(t, ext4)
			dir := p.Dir
			tc.change(p)
			if _, err := p.open(); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), p.Digest.String()) {
				t.Errorf("got %v, want an error with %q that names %s", err, tc.want, p.Digest)
			}
			p.Dir = dir
			p.wantFiles()
		})
	}
	t.Run("no index", func(t *testing.T) {
		p := newPacked(t, map[string]string{"ext4.fs.meta": "turbo/l0.ext4.fs.meta"})
		p.GzipIndex = filepath.Join(p.Dir, "gzip.meta")
		if _, err := p.open(); err == nil || !strings.Contains(err.Error(), "no index") {
			t.Errorf("got %v, want that there is no index", err)
		}
	})
}

// A keeper keeps a damaged copy of blobs, until it is dropped.
type keeper struct {
	fetcher.Opener
	drops int
}

func (k *keeper) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := k.Opener.Open(ctx, ref)
	if err != nil || !strings.Contains(ref.URL, "sha256:") {
		return b, err
	}
	return &kept{b, k}, nil
}

type kept struct {
	fetcher.Blob
	k *keeper
}

func (b *kept) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := b.Blob.ReadAt(ctx, p, off)
	if b.k.drops == 0 && off == 0 {
		p[n-1] ^= 1
	}
	return n, err
}

func (b *kept) Drop(context.Context, int64, int64) error {
	b.k.drops++
	return nil
}

// TestOpenPackedDamagedCopy: what a cache has damaged is fetched once more.
func TestOpenPackedDamagedCopy(t *testing.T) {
	p := newPacked(t, map[string]string{"ext4.fs.meta": "turbo/l0.ext4.fs.meta", "gzip.meta": "turbo/l0.gzip.meta"})
	k := &keeper{Opener: local}
	i, err := image.Open(t.Context(), &spec.Volume{RepoBlobURL: "file://" + p.repo, Lowers: []spec.Lower{p.Lower}}, k)
	if err != nil || k.drops != 1 {
		t.Fatalf("%v, after %d drops", err, k.drops)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

// TestOpenPackedMixed: layers of one image are of the same file system.
func TestOpenPackedMixed(t *testing.T) {
	one := newPacked(t, map[string]string{"ext4.fs.meta": "turbo/l0.ext4.fs.meta", "gzip.meta": "turbo/l0.gzip.meta"})
	two := newPacked(t, map[string]string{"erofs.fs.meta": "erofs/l0.erofs.fs.meta", "gzip.meta": "erofs/l0.gzip.meta"})
	two.RepoBlobURL = "file://" + two.repo
	v := &spec.Volume{RepoBlobURL: "file://" + one.repo, Lowers: []spec.Lower{one.Lower, two.Lower}}
	if _, err := image.Open(t.Context(), v, local); err == nil || !strings.Contains(err.Error(), "in common") {
		t.Errorf("got %v, want that the layers have no file system in common", err)
	}
}
