// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// errEnough ends a walk.
var errEnough = errors.New("enough")

// sources returns a tar of the Go toolchain, sources and a program, of about n
// bytes.
func sources(t testing.TB, n int) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := filepath.WalkDir(filepath.Join(runtime.GOROOT(), "src"), func(name string, d fs.DirEntry, err error) error { //nolint:staticcheck // the toolchain that runs the test is here
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if out.Len() > n*2/3 {
			return errEnough
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return addFile(w, name, b)
	})
	if err != nil && !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	program := readFile(t, filepath.Join(runtime.GOROOT(), "bin", "go")) //nolint:staticcheck // as above
	if err := addFile(w, "go", program[:min(len(program), n/3)]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func addFile(w *tar.Writer, name string, b []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b)), Mode: 0o644}); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// layerLike returns n bytes and some of all kinds: sources and programs, and
// what compresses not at all or to nothing.
func layerLike(t testing.TB, n int) []byte {
	t.Helper()
	random := make([]byte, n/8)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(random) // never fails
	return slices.Concat(sources(t, n/2), random, make([]byte, n/2), sources(t, n/8))
}

// piped returns what a program makes of p.
func piped(t testing.TB, p []byte, argv ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Command(t, argv[0]), argv[1:]...)
	cmd.Stdin = bytes.NewReader(p)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func gzipped(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	return written(t, p, len(p)+1, func(w io.Writer) (flusher, error) { return gzip.NewWriterLevel(w, level) })
}

type flusher interface {
	io.WriteCloser
	Flush() error
}

// written returns p compressed by a writer that is flushed after every n bytes.
func written(t testing.TB, p []byte, n int, writer func(io.Writer) (flusher, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := writer(&out)
	if err != nil {
		t.Fatal(err)
	}
	for ; len(p) > n; p = p[n:] {
		_, err := w.Write(p[:n])
		if err := errors.Join(err, w.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	_, err = w.Write(p)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// corpus returns what makes gzip files of a content, by name.
func corpus() map[string]func(testing.TB, []byte) []byte {
	c := map[string]func(testing.TB, []byte) []byte{
		"pigz":         func(t testing.TB, p []byte) []byte { return piped(t, p, "pigz", "-p4") },
		"pigz -9":      func(t testing.TB, p []byte) []byte { return piped(t, p, "pigz", "-9", "-p4", "-b", "256") },
		"gzip 1":       func(t testing.TB, p []byte) []byte { return piped(t, p, "gzip", "-1") },
		"gzip 4":       func(t testing.TB, p []byte) []byte { return piped(t, p, "gzip", "-4") },
		"gzip 9":       func(t testing.TB, p []byte) []byte { return piped(t, p, "gzip", "-9") },
		"go 6":         func(t testing.TB, p []byte) []byte { return gzipped(t, p, 6) },
		"stored":       func(t testing.TB, p []byte) []byte { return gzipped(t, p, gzip.NoCompression) },
		"huffman only": func(t testing.TB, p []byte) []byte { return gzipped(t, p, gzip.HuffmanOnly) },
		"klauspost 1": func(t testing.TB, p []byte) []byte {
			return written(t, p, len(p)+1, func(w io.Writer) (flusher, error) { return kgzip.NewWriterLevel(w, 1) })
		},
		"klauspost 9": func(t testing.TB, p []byte) []byte {
			return written(t, p, len(p)+1, func(w io.Writer) (flusher, error) { return kgzip.NewWriterLevel(w, 9) })
		},
		"flushed": func(t testing.TB, p []byte) []byte {
			return written(t, p, 1000, func(w io.Writer) (flusher, error) { return gzip.NewWriterLevel(w, 1) })
		},
		"two members": func(t testing.TB, p []byte) []byte {
			n := len(p) / 3
			return append(gzipped(t, p[:n], 6), gzipped(t, p[n:], 6)...)
		},
		"a member per file": members,
		"named":             named,
		"padded":            func(t testing.TB, p []byte) []byte { return append(gzipped(t, p, 1), make([]byte, 1000)...) },
	}
	return c
}

// members makes a member of every few KiB, as eStargz does.
func members(t testing.TB, p []byte) []byte {
	t.Helper()
	z := gzipped(t, nil, 6)
	for rnd := rand.New(rand.NewPCG(3, 3)); len(p) > 0; {
		n := min(rnd.IntN(30_000), len(p))
		z = append(z, gzipped(t, p[:n], 1+rnd.IntN(9))...)
		p = p[n:]
	}
	return z
}

// named makes two members whose headers have all there can be.
func named(t testing.TB, p []byte) []byte {
	t.Helper()
	n := len(p) / 2
	header := func(h *gzip.Header) {
		h.Name, h.Comment, h.Extra = "layer.tar", "no comment", make([]byte, 3000)
		h.ModTime = time.Unix(1, 0)
	}
	var z []byte
	for _, p := range [][]byte{p[:n], p[n:]} {
		z = append(z, written(t, p, len(p)+1, func(w io.Writer) (flusher, error) {
			k := gzip.NewWriter(w)
			header(&k.Header)
			return k, nil
		})...)
	}
	return z
}

func TestCorpus(t *testing.T) {
	content := layerLike(t, 2<<20)
	for _, name := range slices.Sorted(maps.Keys(corpus())) {
		t.Run(name, func(t *testing.T) {
			z := corpus()[name](t, content)
			for _, span := range []int64{64 << 10, 0} {
				got, index := build(t, z, gzidx.Options{Span: span})
				if !bytes.Equal(got, content) {
					t.Fatalf("inflated to %d bytes that are not the %d compressed", len(got), len(content))
				}
				t.Logf("span %d: index of %d bytes, %.2f %%", span, len(index), 100*float64(len(index))/float64(len(z)))
				b := open(t, memBlob(z), index)
				compare(t, b, content, uint64(span))
				spans(t, b, span)
			}
		})
	}
}

// spans wants the spans of b to follow each other, and not to be far longer
// than asked for.
func spans(t testing.TB, b *gzidx.Blob, span int64) {
	t.Helper()
	if span == 0 {
		span = gzidx.DefaultSpan
	}
	for off := int64(0); off < b.Size(); {
		start, end := b.Span(off)
		again, _ := b.Span(end - 1)
		// A block of zeros holds 4 MiB.
		if start != off || again != off || end-start > span+5<<20 {
			t.Fatalf("span of byte %d is %d to %d", off, start, end)
		}
		off = end
	}
}
