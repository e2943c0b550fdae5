// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestGoldenTargets opens layers of which the reference keeps only what is not
// in the tar.
func TestGoldenTargets(t *testing.T) {
	dir, files := need.Golden(t, "turbo/*", "erofs/*", "tars/l0.tar*")
	for _, tc := range []struct{ layer, target, index string }{
		{"turbo/l0.ext4.fs.meta", "tars/l0.tar.gz", "turbo/l0.gzip.meta"},
		{"turbo/l0.plain.ext4.fs.meta", "tars/l0.tar", ""},
		{"erofs/l0.erofs.fs.meta", "tars/l0.tar.gz", "erofs/l0.gzip.meta"},
	} {
		t.Run(tc.layer, func(t *testing.T) {
			l := spec.Lower{File: files[tc.layer].Path, TargetFile: filepath.Join(dir, tc.target)}
			if tc.index != "" {
				l.GzipIndex = filepath.Join(dir, tc.index)
			}
			i, err := image.Open(t.Context(), &spec.Volume{Lowers: []spec.Lower{l}}, local)
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if got, want := volumeHash(t, i), files[tc.layer].Volume; got != want {
				t.Errorf("got volume %s, want %s", got, want)
			}
		})
	}
}

// turbo is a lower of local files, which tests change.
type turbo struct {
	t *testing.T
	spec.Lower
}

func newTurbo(t *testing.T) *turbo {
	t.Helper()
	dir, files := need.Golden(t, "turbo/*", "tars/l0.tar*")
	return &turbo{t, spec.Lower{
		File:       files["turbo/l0.ext4.fs.meta"].Path,
		TargetFile: filepath.Join(dir, "tars/l0.tar.gz"),
		GzipIndex:  files["turbo/l0.gzip.meta"].Path,
	}}
}

// change changes the content of a file.
func (l *turbo) change(path string, change func([]byte) []byte) {
	l.t.Helper()
	content, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(content), 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// read opens the lower and reads all of it.
func (l *turbo) read() error {
	i, err := image.Open(l.t.Context(), &spec.Volume{Lowers: []spec.Lower{l.Lower}}, local)
	if err != nil {
		return err
	}
	defer i.Close()
	_, err = io.Copy(io.Discard, fetcher.AtContext(l.t.Context(), i))
	return err
}

// TestTargetErrors: what is wrong with a target or its index is said where it is
// found, and names the file.
func TestTargetErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(l *turbo)
		class  error
		names  func(l *turbo) string
	}{
		{"no target", func(l *turbo) { l.TargetFile += ".gone" }, fetcher.ErrNotFound, func(l *turbo) string { return l.TargetFile }},
		{"no index", func(l *turbo) { l.GzipIndex += ".gone" }, fetcher.ErrNotFound, func(l *turbo) string { return l.GzipIndex }},
		{"index without target", func(l *turbo) { l.TargetFile = "" }, nil, func(l *turbo) string { return l.GzipIndex }},
		{"index cut", func(l *turbo) {
			l.change(l.GzipIndex, func(b []byte) []byte { return b[:len(b)-1] })
		}, gzidx.ErrCorrupt, func(l *turbo) string { return l.GzipIndex }},
		{"index empty", func(l *turbo) {
			l.change(l.GzipIndex, func([]byte) []byte { return nil })
		}, nil, func(l *turbo) string { return l.GzipIndex }},
		{"index of something", func(l *turbo) { l.GzipIndex = l.File }, nil, func(l *turbo) string { return "neither a gzip nor a zstd index" }},
		{"target cut", func(l *turbo) {
			l.change(l.TargetFile, func(b []byte) []byte { return b[:len(b)-1] })
		}, gzidx.ErrChanged, func(l *turbo) string { return l.TargetFile }},
		{"target of another content", func(l *turbo) {
			l.change(l.TargetFile, func(b []byte) []byte { return append(b[:1000], bytes.Repeat([]byte{0x55}, len(b)-1000)...) })
		}, gzidx.ErrChanged, func(l *turbo) string { return l.TargetFile }},
		{"plain target too short", func(l *turbo) {
			l.TargetFile, l.GzipIndex = strings.TrimSuffix(l.TargetFile, ".gz"), ""
			l.change(l.TargetFile, func(b []byte) []byte { return b[:20<<10] })
		}, nil, func(l *turbo) string { return l.File }},
		{"no layer", func(l *turbo) { l.File += ".gone" }, fetcher.ErrNotFound, func(l *turbo) string { return l.File }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newTurbo(t)
			tc.change(l)
			err := l.read()
			if err == nil || !strings.Contains(err.Error(), tc.names(l)) || tc.class != nil && !errors.Is(err, tc.class) {
				t.Errorf("got %v; want %v that names %s", err, tc.class, tc.names(l))
			}
			if errors.Is(err, fetcher.ErrTemporary) {
				t.Errorf("%v is said to pass", err)
			}
		})
	}
}

// TestTargetKeys: the content of a target is kept under keys of its own for each
// index, and for each target.
func TestTargetKeys(t *testing.T) {
	l := newTurbo(t)
	other := filepath.Join(t.TempDir(), "other")
	content, err := os.ReadFile(l.GzipIndex)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, append(content, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := make(map[digest.Digest]bool)
	for _, target := range []string{"a", "b"} {
		for _, index := range []string{l.GzipIndex, other} {
			key, err := image.TargetKey(digest.FromString(target), index)
			if err != nil {
				t.Fatal(err)
			}
			keys[key] = true
			if again, err := image.TargetKey(digest.FromString(target), index); err != nil || again != key {
				t.Errorf("got %s and %s, %v", key, again, err)
			}
		}
	}
	if len(keys) != 4 {
		t.Errorf("got %d keys, want 4", len(keys))
	}
}
