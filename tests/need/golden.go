// SPDX-License-Identifier: Apache-2.0

package need

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// A GoldenFile is one file written by the reference's tools.
type GoldenFile struct {
	Path   string // where Golden unpacked it
	Size   int64  // bytes
	SHA256 string // hex, of the file

	// Volume is the hex SHA-256 of the whole virtual device that a reader must
	// produce from the file, or a word where there is no such device.
	Volume string
}

// Golden unpacks the golden files whose name ("zfile/l0.lz4.4") matches one of
// the path.Match patterns into a directory of t's own. It returns that
// directory and what the manifest says of the files, by name.
func Golden(t testing.TB, patterns ...string) (dir string, files map[string]GoldenFile) {
	t.Helper()
	src := filepath.Join(moduleRoot(t), "..", "shared", "golden")
	archive, err := os.Open(filepath.Join(src, "golden.tar.zst"))
	check(t, "golden", err == nil, "the golden layers are not at "+src)
	defer archive.Close()

	dir = t.TempDir()
	if err := unpack(archive, dir, patterns); err != nil {
		t.Fatalf("unpack golden layers: %v", err)
	}
	return dir, manifest(t, filepath.Join(src, "MANIFEST.tsv"), dir, patterns)
}

// moduleRoot returns the directory above the test that holds go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(mod), "module github.com/overlaybd-go/overlaybd\n") {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod of the project above the test")
		}
		dir = filepath.Dir(dir)
	}
}

func unpack(archive io.Reader, dir string, patterns []string) error {
	z, err := zstd.NewReader(archive)
	if err != nil {
		return err
	}
	defer z.Close()
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !matches(name, patterns) {
			continue
		}
		if err := writeFile(filepath.Join(dir, name), tr); err != nil {
			return err
		}
	}
}

func writeFile(name string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func matches(name string, patterns []string) bool {
	for _, p := range patterns {
		if ok, _ := path.Match(p, name); ok {
			return true
		}
	}
	return false
}

func manifest(t testing.TB, name, dir string, patterns []string) map[string]GoldenFile {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := make(map[string]GoldenFile)
	for s := bufio.NewScanner(f); s.Scan(); {
		col := strings.Split(s.Text(), "\t")
		if len(col) != 4 || !matches(col[0], patterns) {
			continue
		}
		size, err := strconv.ParseInt(col[1], 10, 64)
		if err != nil {
			t.Fatalf("%s: size of %s: %v", name, col[0], err)
		}
		files[col[0]] = GoldenFile{Path: filepath.Join(dir, col[0]), Size: size, SHA256: col[2], Volume: col[3]}
	}
	return files
}
