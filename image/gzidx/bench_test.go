// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// BenchmarkIndex asks how fast indexing is against gunzip, of which more is
// better. Both have one thread, and take turns; what is compared is processor
// time.
func BenchmarkIndex(b *testing.B) {
	gunzip := need.Command(b, "gunzip")
	z := gzipped(b, sources(b, 30<<20), gzip.DefaultCompression)
	name := filepath.Join(b.TempDir(), "z.gz")
	if err := os.WriteFile(name, z, 0o600); err != nil {
		b.Fatal(err)
	}
	var theirs, ours time.Duration
	var size, content int64
	for b.Loop() {
		b.StopTimer()
		cmd := exec.CommandContext(b.Context(), gunzip, "-c", name)
		cmd.Stdout = nil
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		theirs += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		b.StartTimer()
		start := processorTime(b)
		r := gzidx.NewReader(bytes.NewReader(z), gzidx.Options{})
		var err error
		if content, err = io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		if size, err = r.WriteIndex(io.Discard); err != nil {
			b.Fatal(err)
		}
		ours += processorTime(b) - start
	}
	b.SetBytes(content)
	b.ReportMetric(float64(theirs)/float64(ours), "of-gunzip")
	b.ReportMetric(100*float64(size)/float64(len(z)), "%index")
}

// BenchmarkSpan asks what the distance of points costs: the size of the index,
// against that of the gzip file, and how much is decoded to read a byte.
func BenchmarkSpan(b *testing.B) {
	z := gzipped(b, sources(b, 30<<20), gzip.DefaultCompression)
	for _, span := range []int64{512 << 10, 1 << 20, 2 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", span>>10), func(b *testing.B) {
			var content, index []byte
			for b.Loop() {
				content, index = build(b, z, gzidx.Options{Span: span})
			}
			blob := open(b, memBlob(z), index)
			var decoded float64
			for off := int64(0); off < blob.Size(); {
				start, end := blob.Span(off)
				decoded += float64(end-start) * float64(end-start) / float64(len(content))
				off = end
			}
			b.SetBytes(int64(len(content)))
			b.ReportMetric(100*float64(len(index))/float64(len(z)), "%index")
			b.ReportMetric(decoded/(1<<10), "KiB/byte-read")
		})
	}
}

// processorTime returns what the process has used of it.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRead asks what reads cost against decoding all of the file with
// compress/gzip, per byte read.
func BenchmarkRead(b *testing.B) {
	z := gzipped(b, sources(b, 30<<20), gzip.DefaultCompression)
	want, index := build(b, z, gzidx.Options{})
	start := time.Now()
	std, err := gzip.NewReader(bytes.NewReader(z))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, std); err != nil {
		b.Fatal(err)
	}
	whole := time.Since(start)
	b.Run("random4K", func(b *testing.B) {
		blob := open(b, memBlob(z), index)
		rnd, p := rand.New(rand.NewPCG(1, 1)), make([]byte, 4096)
		for b.Loop() {
			if _, err := blob.ReadAt(b.Context(), p, rnd.Int64N(int64(len(want)-len(p)))); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(whole), "of-whole")
	})
	b.Run("sequential", func(b *testing.B) {
		blob := open(b, memBlob(z), index)
		p := make([]byte, 128<<10)
		b.SetBytes(int64(len(want)))
		for b.Loop() {
			for off := 0; off < len(want); off += len(p) {
				if _, err := blob.ReadAt(b.Context(), p[:min(len(p), len(want)-off)], int64(off)); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(whole), "of-whole")
	})
}
