// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// turboBlob returns the blob of a turbo layer of that content.
func turboBlob(t testing.TB, layer, index, compression string) *convert.Blob {
	t.Helper()
	b, err := convert.NewTurboBlob(func(w, x io.Writer) (string, error) {
		_, err := io.WriteString(w, layer)
		_, err2 := io.WriteString(x, index)
		return compression, errors.Join(err, err2)
	}, convert.TurboOptions{FSType: "ext4", Compression: zfile.Options{Workers: 1}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func bytesOf(t testing.TB, b *convert.Blob) []byte {
	t.Helper()
	text, err := io.ReadAll(io.NewSectionReader(b, 0, b.Descriptor().Size))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestTurboBlob: the blob is the tar that containerd unpacks, and its digests
// are what they say.
func TestTurboBlob(t *testing.T) {
	layer := strings.Repeat("metadata", 1<<13)
	for compression, want := range map[string][]string{
		"":     {"ext4.fs.meta", ".turbo.ociv1"},
		"gzip": {"ext4.fs.meta", ".turbo.ociv1", "gzip.meta"},
		"zstd": {"ext4.fs.meta", ".turbo.ociv1", "zstd.meta"},
	} {
		b := turboBlob(t, layer, "index", compression)
		text := bytesOf(t, b)
		if got := digest.FromBytes(text); got != b.Descriptor().Digest {
			t.Errorf("%q: the digest is %s, not %s", compression, got, b.Descriptor().Digest)
		}
		z, err := gzip.NewReader(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if !z.ModTime.IsZero() || z.Name != "" {
			t.Errorf("%q: the gzip header says %+v", compression, z.Header)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if got := digest.FromBytes(plain); got != b.Meta().DiffID {
			t.Errorf("%q: the diff ID is %s, not %s", compression, got, b.Meta().DiffID)
		}
		found := untar(t, plain)
		if names := fmt.Sprint(found.names); names != fmt.Sprint(want) {
			t.Errorf("%q: files %s, want %s", compression, names, want)
		}
		if compression != "" && found.text[compression+".meta"] != "index" {
			t.Errorf("%q: index %q", compression, found.text[compression+".meta"])
		}
		if meta, err := zfile.Open(t.Context(), b.Layer()); err != nil || meta.Size() != int64(len(layer)) {
			t.Errorf("%q: the layer is not what was written: %v", compression, err)
		}
		if again := bytesOf(t, turboBlob(t, layer, "index", compression)); !bytes.Equal(text, again) {
			t.Errorf("%q: made twice it has other bytes", compression)
		}
	}
}

type tarFiles struct {
	names []string
	text  map[string]string
}

func untar(t *testing.T, text []byte) tarFiles {
	t.Helper()
	found := tarFiles{text: map[string]string{}}
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.ModTime.Unix() != 0 || h.Mode != 0o644 || h.Typeflag != tar.TypeReg {
			t.Errorf("header %+v", h)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found.names = append(found.names, h.Name)
		found.text[h.Name] = string(content)
	}
}

// TestTurboBlobFails: nothing is left behind where the layer cannot be made.
func TestTurboBlobFails(t *testing.T) {
	dir, broken := t.TempDir(), errors.New("broken")
	_, err := convert.NewTurboBlob(func(w, _ io.Writer) (string, error) {
		_, _ = w.Write(make([]byte, 1<<16)) // on its way when the error comes
		return "", broken
	}, convert.TurboOptions{FSType: "ext4", TempDir: dir})
	if left, _ := os.ReadDir(dir); !errors.Is(err, broken) || len(left) != 0 {
		t.Errorf("error %v, left %v", err, left)
	}
}

func TestReadMeta(t *testing.T) {
	b := turboBlob(t, strings.Repeat("metadata", 1000), "index", "zstd")
	text := bytesOf(t, b)
	m, err := convert.ReadMeta(bytes.NewReader(text), b.Descriptor().Digest, "ext4", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.DiffID != b.Meta().DiffID || m.Compression != "zstd" {
		t.Errorf("diff ID %s, compression %q", m.DiffID, m.Compression)
	}
	got, want := make([]byte, m.Layer().Size()), make([]byte, b.Layer().Size())
	if _, err := m.Layer().ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Layer().ReadAt(t.Context(), want, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the layer read back differs: %v", err)
	}
}

// TestReadMetaRefuses: what is no turbo layer, or another one, is no layer.
func TestReadMetaRefuses(t *testing.T) {
	b := turboBlob(t, "metadata", "index", "gzip")
	text, dgst := bytesOf(t, b), b.Descriptor().Digest
	for name, tt := range map[string]struct {
		text   []byte
		dgst   digest.Digest
		fsType string
		want   string
	}{
		"another blob":        {text, digest.FromString("another"), "ext4", "its digest is"},
		"another file system": {text, dgst, "erofs", "no erofs.fs.meta"},
		"something behind it": {append(bytes.Clone(text), 0), dgst, "ext4", ""},
		"no gzip":             {[]byte("text"), digest.FromString("text"), "ext4", ""},
		"cut":                 {text[:len(text)/2], digest.FromBytes(text[:len(text)/2]), "ext4", "unexpected EOF"},
		"twice the layer":     twice(t),
		"no digest":           {text, "sha256:x", "ext4", "digest"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m, err := convert.ReadMeta(bytes.NewReader(tt.text), tt.dgst, tt.fsType, dir)
			if err == nil || m != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

// twice returns a blob that has its layer twice.
func twice(t *testing.T) (c struct {
	text   []byte
	dgst   digest.Digest
	fsType string
	want   string
},
) {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for range 2 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "ext4.fs.meta", Size: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	c.text, c.dgst, c.fsType, c.want = buf.Bytes(), digest.FromBytes(buf.Bytes()), "ext4", "twice"
	return c
}

// FuzzReadMeta: whatever a registry has instead of a turbo layer is refused or
// unpacked.
func FuzzReadMeta(f *testing.F) {
	for _, c := range []string{"", "gzip", "zstd"} {
		f.Add(bytesOf(f, turboBlob(f, "metadata", "index", c)))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := convert.ReadMeta(bytes.NewReader(text), digest.FromBytes(text), "ext4", dir)
		if err != nil {
			return
		}
		defer m.Close()
		if m.Layer().Size() == 0 || m.DiffID == "" {
			t.Errorf("an empty layer %+v", m)
		}
	})
}
