// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// benchContent is 30 MB of Go's own sources, as a layer may have them.
func benchContent(b *testing.B) []byte {
	b.Helper()
	root, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		b.Skip("no Go sources to compress: ", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(root)), "src")
	var all []byte
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if len(all) > 30_000_000 {
			return fs.SkipAll
		}
		p, err := os.ReadFile(path)
		all = append(all, p...)
		return err
	})
	if err != nil || len(all) < 1<<20 {
		b.Skip("no Go sources to compress: ", err)
	}
	return all
}

// BenchmarkIndex makes an index. Its ratios are the speed as a multiple of that
// of klauspost's decoder and of the program zstd, which run in turn with it.
func BenchmarkIndex(b *testing.B) {
	content := benchContent(b)
	z := goStream()(b, content)
	file := filepath.Join(b.TempDir(), "layer.zst")
	if err := os.WriteFile(file, z, 0o600); err != nil {
		b.Fatal(err)
	}
	var ours, klauspost, program time.Duration
	var index int64
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		t0 := time.Now()
		r := zstdidx.NewReader(bytes.NewReader(z), zstdidx.Options{})
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		index, _ = r.WriteIndex(io.Discard)
		t1 := time.Now()
		k, err := zstd.NewReader(bytes.NewReader(z), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, k); err != nil {
			b.Fatal(err)
		}
		k.Close()
		t2 := time.Now()
		if hasProgram() {
			if err := exec.CommandContext(b.Context(), "zstd", "-dqfo", "/dev/null", file).Run(); err != nil {
				b.Fatal(err)
			}
			program += time.Since(t2)
		}
		ours, klauspost = ours+t1.Sub(t0), klauspost+t2.Sub(t1)
	}
	b.ReportMetric(klauspost.Seconds()/ours.Seconds(), "of-klauspost")
	if hasProgram() {
		b.ReportMetric(program.Seconds()/ours.Seconds(), "of-zstd-d")
	}
	b.ReportMetric(100*float64(index)/float64(len(z)), "%index")
}

// BenchmarkReadCold reads 4 KiB at places all over a layer, of which nothing is
// kept. Its ratio is what that takes as a multiple of decompressing the layer.
func BenchmarkReadCold(b *testing.B) {
	content := benchContent(b)
	z := goStream()(b, content)
	_, index := indexed(b, z, zstdidx.Options{})
	src := open(b, memBlob(z), index)
	t0 := time.Now()
	if _, err := io.Copy(io.Discard, zstdidx.NewReader(bytes.NewReader(z), zstdidx.Options{})); err != nil {
		b.Fatal(err)
	}
	whole := time.Since(t0)
	p := make([]byte, 4096)
	off := int64(0)
	for b.Loop() {
		if _, err := src.ReadAt(b.Context(), p, off); err != nil {
			b.Fatal(err)
		}
		off = (off + 9<<20) % (src.Size() - int64(len(p)))
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/whole.Seconds(), "of-whole")
}

// BenchmarkReadInOrder reads a layer from its beginning to its end. Its ratio is
// what that takes as a multiple of klauspost's decoder, which runs in turn with
// it.
func BenchmarkReadInOrder(b *testing.B) {
	content := benchContent(b)
	z := goStream()(b, content)
	_, index := indexed(b, z, zstdidx.Options{})
	src := open(b, memBlob(z), index)
	k, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	var ours, klauspost time.Duration
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		t0 := time.Now()
		r, err := src.ReadRange(b.Context(), 0, src.Size())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
		t1 := time.Now()
		if err := k.Reset(bytes.NewReader(z)); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, k); err != nil {
			b.Fatal(err)
		}
		ours, klauspost = ours+t1.Sub(t0), klauspost+time.Since(t1)
	}
	b.ReportMetric(ours.Seconds()/klauspost.Seconds(), "of-klauspost")
}
