// SPDX-License-Identifier: Apache-2.0

package referrer_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/daemon/referrer"
)

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
			err := referrer.Unpack(bytes.NewReader(archive(t, tc.entries...)), dir, tc.limit)
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
	err := referrer.Unpack(bytes.NewReader(sparseTar(t)), t.TempDir(), 1<<20)
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
		_ = referrer.Unpack(bytes.NewReader(layer), inner, limit)
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
