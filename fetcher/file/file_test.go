// SPDX-License-Identifier: Apache-2.0

package file_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
)

func write(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blob with space")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBlob(t *testing.T) {
	fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
		b, err := file.Open(write(t, content))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestOpen(t *testing.T) {
	path := write(t, []byte("12345"))
	escaped := "file://" + strings.ReplaceAll(path, " ", "%20")
	for _, c := range []struct {
		name string
		ref  fetcher.Ref
		err  string // in the error; empty for success
	}{
		{"size unknown", fetcher.Ref{URL: escaped}, ""},
		{"size known", fetcher.Ref{URL: escaped, Size: 5}, ""},
		{"localhost", fetcher.Ref{URL: strings.Replace(escaped, "file://", "file://localhost", 1)}, ""},
		{"other size", fetcher.Ref{URL: escaped, Size: 6}, "has 5 bytes, not 6"},
		{"other host", fetcher.Ref{URL: "file://host/x"}, "names no local file"},
		{"other scheme", fetcher.Ref{URL: "https://host/x"}, "names no local file"},
		{"directory", fetcher.Ref{URL: "file://" + filepath.ToSlash(os.TempDir())}, "not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := file.Opener{}.Open(t.Context(), c.ref)
			if err == nil {
				defer b.Close()
			}
			if c.err == "" && (err != nil || b.Size() != 5) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want %q", err, c.err)
			}
		})
	}
}

func TestMissingIsNotFound(t *testing.T) {
	_, err := file.Open(filepath.Join(t.TempDir(), "none"))
	if !errors.Is(err, fetcher.ErrNotFound) {
		t.Errorf("got %v, want fetcher.ErrNotFound", err)
	}
}

func TestPipeDoesNotBlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Open(path); err == nil {
		t.Error("opened a pipe")
	}
}

func TestCutShortIsNoEOF(t *testing.T) {
	path := write(t, []byte("0123456789"))
	b, err := file.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := os.Truncate(path, 4); err != nil {
		t.Fatal(err)
	}
	n, err := b.ReadAt(t.Context(), make([]byte, 10), 0)
	if n != 4 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %d, %v; want 4, unexpected EOF", n, err)
	}
}
