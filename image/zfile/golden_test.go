// SPDX-License-Identifier: Apache-2.0

package zfile_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// memBlob is a Blob over a byte slice.
type memBlob []byte

func (m memBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (m memBlob) Size() int64  { return int64(len(m)) }
func (m memBlob) Close() error { return nil }

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// content returns the uncompressed bytes of the ZFile b, tar-wrapped or not,
// read whole and verified.
func content(t testing.TB, b []byte) []byte {
	t.Helper()
	src, err := tarblob.Open(t.Context(), memBlob(b))
	if err != nil {
		t.Fatal(err)
	}
	return readAll(t, open(t, src))
}

func open(t testing.TB, src fetcher.Blob) *zfile.Reader {
	t.Helper()
	r, err := zfile.Open(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readAll(t testing.TB, r *zfile.Reader) []byte {
	t.Helper()
	if err := r.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	p := make([]byte, r.Size()+1)
	n, err := r.ReadAt(t.Context(), p, 0)
	if !errors.Is(err, io.EOF) {
		t.Errorf("read past the end: %d, %v", n, err)
	}
	return p[:n]
}

func TestGoldenContent(t *testing.T) {
	dir, files := need.Golden(t, "zfile/*", "stack/l0.obd", "raw/l0.lsmt")
	want := readFile(t, filepath.Join(dir, "raw/l0.lsmt"))
	delete(files, "raw/l0.lsmt")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		t.Run(name, func(t *testing.T) {
			if got := content(t, readFile(t, files[name].Path)); !bytes.Equal(got, want) {
				t.Errorf("%d bytes that are not those compressed", len(got))
			}
		})
	}
}

// The two were committed one after the other: only their UUIDs, in the first
// and last 4 KiB, differ.
func TestGoldenWrapped(t *testing.T) {
	dir, _ := need.Golden(t, "rw/a.commit", "rw/a.commit.z.tar")
	want := readFile(t, filepath.Join(dir, "rw/a.commit"))
	got := content(t, readFile(t, filepath.Join(dir, "rw/a.commit.z.tar")))
	if n := len(want) - 4096; len(got) != len(want) || !bytes.Equal(got[4096:n], want[4096:n]) {
		t.Errorf("%d bytes that are not those compressed", len(got))
	}
}

// The reference cannot read 64 KiB blocks that do not compress; its own 4 KiB
// file of the same data says what they hold.
func TestGoldenIncompressible(t *testing.T) {
	_, files := need.Golden(t, "neg/*")
	want := content(t, readFile(t, files["neg/incompressible.lz4.4"].Path))
	for name, file := range files {
		if got := content(t, readFile(t, file.Path)); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes that differ from those of the 4 KiB blocks", name, len(got))
		}
	}
}

// Layers that two tools convert from one image have one digest only where the
// tools write the same bytes.
func TestWriterWritesWhatTheReferenceDoes(t *testing.T) {
	dir, _ := need.Golden(t, "zfile/*", "raw/l0.lsmt", "neg/incompressible.lz4.4")
	got := compress(t, readFile(t, filepath.Join(dir, "raw/l0.lsmt")), zfile.Options{})
	if !bytes.Equal(got, readFile(t, filepath.Join(dir, "zfile/l0.lz4.4.trailer-only"))) {
		t.Error("l0 with LZ4 and 4 KiB blocks differs")
	}
	incompressible := readFile(t, filepath.Join(dir, "neg/incompressible.lz4.4"))
	if got := compress(t, content(t, incompressible), zfile.Options{}); !bytes.Equal(got, incompressible) {
		t.Error("incompressible data differs")
	}
}

// Where the reference rewrote the header, all but that must be equal.
func TestWriterWritesTheReferenceBlocks(t *testing.T) {
	dir, _ := need.Golden(t, "zfile/*", "raw/l0.lsmt")
	raw := readFile(t, filepath.Join(dir, "raw/l0.lsmt"))
	for name, opts := range map[string]zfile.Options{
		"zfile/l0.lz4.4":       {},
		"zfile/l0.lz4.4.nocrc": {NoChecksum: true},
		"zfile/l0.lz4.64":      {BlockSize: 64 << 10},
	} {
		want := readFile(t, filepath.Join(dir, name))
		if got := compress(t, raw, opts); !bytes.Equal(got[512:], want[512:]) {
			t.Errorf("%s differs", name)
		}
	}
}

func compress(t testing.TB, raw []byte, opts zfile.Options) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zfile.NewWriter(&out, opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
