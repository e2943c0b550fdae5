// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	filefetch "github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
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
