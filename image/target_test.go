// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
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

// TestZstdTarget reads the golden layer's content out of a zstd file.
func TestZstdTarget(t *testing.T) {
	dir, files := need.Golden(t, "turbo/*", "tars/l0.tar")
	content, err := os.ReadFile(filepath.Join(dir, "tars/l0.tar"))
	must(t, err)
	var packed, index bytes.Buffer
	w, err := zstd.NewWriter(&packed)
	must(t, err)
	_, err = w.Write(content)
	must(t, errors.Join(err, w.Close()))
	r := zstdidx.NewReader(bytes.NewReader(packed.Bytes()), zstdidx.Options{})
	_, err = io.Copy(io.Discard, r)
	must(t, err)
	_, err = r.WriteIndex(&index)
	must(t, err)
	l := spec.Lower{File: files["turbo/l0.ext4.fs.meta"].Path, TargetFile: filepath.Join(dir, "zst"), GzipIndex: filepath.Join(dir, "zstd.meta")}
	must(t, errors.Join(os.WriteFile(l.TargetFile, packed.Bytes(), 0o600), os.WriteFile(l.GzipIndex, index.Bytes(), 0o600)))
	i, err := image.Open(t.Context(), &spec.Volume{Lowers: []spec.Lower{l}}, local)
	must(t, err)
	defer i.Close()
	if got, want := volumeHash(t, i), files[l.File[len(dir)+1:]].Volume; got != want {
		t.Errorf("got volume %s, want %s", got, want)
	}
}

// farTarget is a volume whose one layer maps the content of a gzip file in reg.
func farTarget(tb testing.TB, reg *fetchertest.Registry, content []byte) (v *spec.Volume, target []byte) {
	tb.Helper()
	var packed, layer bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(content)
	must(tb, errors.Join(err, z.Close()))
	r := gzidx.NewReader(bytes.NewReader(packed.Bytes()), gzidx.Options{})
	_, err = io.Copy(io.Discard, r)
	must(tb, err)
	dir := tb.TempDir()
	l := spec.Lower{File: filepath.Join(dir, "ext4.fs.meta"), GzipIndex: filepath.Join(dir, "gzip.meta")}
	index, err := os.Create(l.GzipIndex)
	must(tb, err)
	_, err = r.WriteIndex(index)
	must(tb, errors.Join(err, index.Close()))
	b, err := lsmt.Build(&layer, nil, lsmt.BuilderOptions{VirtualSize: int64(len(content)), Target: true, TempDir: dir})
	must(tb, err)
	must(tb, errors.Join(b.MapContent(tb.Context(), 0, int64(len(content)), 0), b.Finish(tb.Context()), b.Close()))
	must(tb, os.WriteFile(l.File, layer.Bytes(), 0o600))
	ref := reg.AddBlob("test/image", packed.Bytes())
	l.TargetDigest = ref.Digest
	return &spec.Volume{RepoBlobURL: strings.TrimSuffix(ref.URL, "/"+ref.Digest.String()), Lowers: []spec.Lower{l}}, packed.Bytes()
}

// readTarget reads all of v's content in pieces of n bytes, in the order of
// pieces.
func readTarget(tb testing.TB, v *spec.Volume, blobs fetcher.Opener, content []byte, n int, pieces []int) {
	tb.Helper()
	i, err := image.Open(tb.Context(), v, fetcher.Schemes{"http": blobs, "file": file.Opener{}})
	must(tb, err)
	defer i.Close()
	p := make([]byte, n)
	for _, k := range pieces {
		_, err := i.ReadAt(tb.Context(), p, int64(k*n))
		must(tb, err)
		if !bytes.Equal(p, content[k*n:(k+1)*n]) {
			tb.Fatalf("piece %d of %d bytes is wrong", k, n)
		}
	}
}

// TestTargetIsFetchedOnce: whatever the order, no byte of it is fetched twice, and
// the next time none at all.
func TestTargetIsFetchedOnce(t *testing.T) {
	content := []byte(hex.EncodeToString(fetchertest.Content(5<<20, 7)))
	for name, order := range map[string][]int{
		"in order":  upTo(len(content) / (128 << 10)),
		"at random": rand.New(rand.NewPCG(1, 2)).Perm(len(content) / 4096),
	} {
		t.Run(name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, fetchertest.Options{})
			v, target := farTarget(t, reg, content)
			dir := t.TempDir()
			for _, most := range []int64{105, 0} {
				reg.ResetLog()
				blobs, shut := cached(t, reg, dir)
				readTarget(t, v, blobs, content, len(content)/len(order), order)
				shut()
				var asked int64
				for _, q := range reg.Log() {
					asked += q.N
				}
				size := int64(len(target))
				t.Logf("%d bytes of %d fetched in %d requests", asked, size, len(reg.Log()))
				if asked*100 > most*size {
					t.Errorf("%d bytes were asked for of a target of %d", asked, size)
				}
			}
		})
	}
}

func upTo(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// BenchmarkTarget: how much longer than to inflate a gzip file does it take to
// read it in order through the index and an empty cache?
func BenchmarkTarget(b *testing.B) {
	content := []byte(hex.EncodeToString(fetchertest.Content(16<<20, 7)))
	reg := fetchertest.NewRegistry(b, fetchertest.Options{})
	v, packed := farTarget(b, reg, content)
	var took, base time.Duration
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		begun := time.Now()
		z, err := gzip.NewReader(bytes.NewReader(packed))
		must(b, err)
		_, err = io.Copy(io.Discard, z)
		must(b, err)
		base += time.Since(begun)

		blobs, shut := cached(b, reg, b.TempDir())
		begun = time.Now()
		readTarget(b, v, blobs, content, 128<<10, upTo(len(content)/(128<<10)))
		took += time.Since(begun)
		shut()
	}
	b.ReportMetric(float64(took)/float64(base), "x-of-compress/gzip")
}

// TestExpectTarget: what is expected of a layer with a target comes in one
// request, and is near when it is read.
func TestExpectTarget(t *testing.T) {
	content := []byte(hex.EncodeToString(fetchertest.Content(4<<20, 7)))
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	v, _ := farTarget(t, reg, content)
	blobs, shut := cached(t, reg, t.TempDir())
	defer shut()
	i, err := image.Open(t.Context(), v, fetcher.Schemes{"http": blobs, "file": file.Opener{}})
	must(t, err)
	defer i.Close()
	if n := len(reg.Log()); n != 0 || !i.Far() {
		t.Errorf("opening made %d requests; the content is far: %t", n, i.Far())
	}
	const off, n = 3<<20 + 512, 2 << 20
	must(t, i.Expect(t.Context(), off, n))
	if log := reg.Log(); len(log) != 1 {
		t.Errorf("%d requests were made: %+v", len(log), log)
	}
	reg.SetDown(true)
	p := make([]byte, n)
	_, err = i.ReadAt(t.Context(), p, off)
	if err != nil || !bytes.Equal(p, content[off:off+n]) {
		t.Errorf("wrong bytes, or %v", err)
	}
}
