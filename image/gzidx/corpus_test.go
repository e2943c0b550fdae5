// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// errEnough ends a walk.
var errEnough = errors.New("enough")

// sources returns a tar of the Go toolchain: of its sources and programs in
// turn, about n bytes.
func sources(t testing.TB, n int) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, dir := range []string{"src", "pkg/tool"} {
		limit := n * 2 / 3
		if dir != "src" {
			limit = n
		}
		err := filepath.WalkDir(filepath.Join(runtime.GOROOT(), dir), func(name string, d fs.DirEntry, err error) error { //nolint:staticcheck // the toolchain that runs the test is here
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			if out.Len() > limit {
				return errEnough
			}
			return addFile(w, name)
		})
		if err != nil && !errors.Is(err, errEnough) {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func addFile(w *tar.Writer, name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b)), Mode: 0o644}); err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
