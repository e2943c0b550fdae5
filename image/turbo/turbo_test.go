// SPDX-License-Identifier: Apache-2.0

package turbo_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/image/turbo"
)

type entry struct {
	name, text string
	kind       byte
}

func file(name, text string) entry { return entry{name: name, text: text, kind: tar.TypeReg} }

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.text)), Typeflag: e.kind}
		if e.kind == tar.TypeSymlink {
			h.Size, h.Linkname = 0, e.text
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := io.WriteString(w, e.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestUnpackVerifies: files of another blob than was asked for are not taken.
func TestUnpackVerifies(t *testing.T) {
	blob := archive(t, file("ext4.fs.meta", "metadata"), file("gzip.meta", "index"))
	dgst, size := digest.FromBytes(blob), int64(len(blob))
	for _, tc := range []struct {
		name string
		blob []byte
		want string
	}{
		{"same", blob, ""},
		{"other", archive(t, file("ext4.fs.meta", "metaData"), file("gzip.meta", "index")), "content is sha256:"},
		{"longer", append(bytes.Clone(blob), 0), "longer than"},
		{"shorter", blob[:size-9], "unexpected EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := turbo.Unpack(bytes.NewReader(tc.blob), dgst, size, t.TempDir())
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestUnpack(t *testing.T) {
	good := []entry{file("ext4.fs.meta", "metadata"), file("./gzip.meta", "index"), file("README", "hello"), {name: "dir/", kind: tar.TypeDir}}
	for _, tc := range []struct {
		name    string
		entries []entry
		limit   int64
		want    string // "" for none
	}{
		{"good", good, 1 << 20, ""},
		{"climbing", append(good, file("../zstd.meta", "x"), file("/zstd.meta", "x"), file("a/../../zstd.meta", "x")), 1 << 20, ""},
		{"twice", append(good, file("gzip.meta", "x")), 1 << 20, "exists"},
		{"link", []entry{{name: "ext4.fs.meta", text: "/etc/passwd", kind: tar.TypeSymlink}}, 1 << 20, "not a regular file"},
		{"large", []entry{file("ext4.fs.meta", strings.Repeat("x", 10000))}, 9000, "more than 9000 bytes"},
		{"large, and not needed", []entry{file("README", strings.Repeat("x", 10000))}, 9000, "more than 9000 bytes"},
		{"many", make([]entry, 200), 1 << 20, "more than 100 entries"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range tc.entries {
				if tc.entries[i].name == "" {
					tc.entries[i] = file("README", "")
				}
			}
			dir := t.TempDir()
			err := turbo.UnpackAll(bytes.NewReader(archive(t, tc.entries...)), dir, tc.limit)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want %s", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{"ext4.fs.meta": "metadata", "gzip.meta": "index"} {
				if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
					t.Errorf("%s: got %q, %v", name, got, err)
				}
			}
			if all, err := os.ReadDir(dir); err != nil || len(all) != 2 {
				t.Errorf("got %v, %v", all, err)
			}
		})
	}
}

// sparseTar is an archive whose only file is said to have a hole of 1 TiB.
func sparseTar(t testing.TB) []byte {
	t.Helper()
	records := "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n32 GNU.sparse.name=ext4.fs.meta\n37 GNU.sparse.realsize=1099511627776\n"
	block := func(name string, kind byte, content []byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(content))})
		_, _ = w.Write(content)
		_ = w.Flush()
		out := b.Bytes()
		out[156] = kind
		copy(out[148:156], "        ")
		sum := 0
		for _, c := range out[:512] {
			sum += int(c)
		}
		copy(out[148:156], octal(sum))
		return out
	}
	hole := make([]byte, 512)
	copy(hole, "1\n1099511627776\n0\n")
	return append(append(block("PaxHeaders/x", 'x', []byte(records)), block("x", '0', hole)...), make([]byte, 1024)...)
}

func octal(n int) []byte {
	b := []byte("000000\x00 ")
	for i := 5; n > 0; i-- {
		b[i] = byte('0' + n&7)
		n >>= 3
	}
	return b
}

// TestUnpackHole: a file that takes no room in the archive is measured by what
// it would take on the node.
func TestUnpackHole(t *testing.T) {
	err := turbo.UnpackAll(bytes.NewReader(sparseTar(t)), t.TempDir(), 1<<20)
	if err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("got %v, want the limit", err)
	}
}

// FuzzUnpack unpacks what a stranger calls a layer.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, file("ext4.fs.meta", "metadata"), file("gzip.meta", "index"), file(".turbo.ociv1", "")))
	f.Add(archive(f, entry{name: "ext4.fs.meta", text: "../../x", kind: tar.TypeSymlink}))
	f.Add(sparseTar(f))
	f.Fuzz(func(t *testing.T, layer []byte) {
		const limit = 64 << 10
		dir := t.TempDir()
		inner := filepath.Join(dir, "inner")
		if err := os.Mkdir(inner, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = turbo.UnpackAll(bytes.NewReader(layer), inner, limit)
		if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
			t.Fatalf("it wrote %v, %v", all, err)
		}
		all, err := os.ReadDir(inner)
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, e := range all {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() {
				t.Fatalf("it made %s: %v, %v", e.Name(), info, err)
			}
			sum += info.Size()
		}
		if sum > limit {
			t.Fatalf("%d bytes of %d allowed", sum, limit)
		}
	})
}
