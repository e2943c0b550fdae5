// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/ext4"
)

// fileSizes returns sizes of files as an image has them, 450 MB together: many
// small ones, and few that hold most of the bytes.
func fileSizes() (sizes []int, total int64) {
	r := rand.New(rand.NewPCG(1, 1))
	for total < 450e6 {
		n := r.IntN(1 << (6 + r.IntN(14)))
		if r.IntN(400) == 0 {
			n = r.IntN(16 << 20)
		}
		sizes = append(sizes, n)
		total += int64(n)
	}
	return sizes, total
}

// BenchmarkWriteTree asks what the file system costs over a plain copy of the
// same bytes to the same kind of volume ("ratio" is time over time).
func BenchmarkWriteTree(b *testing.B) {
	sizes, total := fileSizes()
	data := pattern(1, 16<<20)
	b.SetBytes(total)
	var plain, tree time.Duration
	for b.Loop() {
		v := backendtest.NewMemVolume(2 << 30)
		start := time.Now()
		for off := int64(0); off < total; off += 1 << 20 {
			must(v.WriteAt(b.Context(), data[:1<<20], off))
		}
		plain += time.Since(start)

		v = backendtest.NewMemVolume(2 << 30)
		start = time.Now()
		writeTree(b, format(b, v), sizes, data)
		tree += time.Since(start)
	}
	b.ReportMetric(float64(tree)/float64(plain), "ratio")
	b.ReportMetric(float64(len(sizes)), "files")
	b.ReportMetric(float64(total)*float64(b.N)/1e6/tree.Seconds(), "treeMB/s")
}

// writeTree writes files of the sizes given, 100 to a directory, in pieces of
// 32 KiB as io.Copy does.
func writeTree(b *testing.B, f *ext4.FS, sizes []int, data []byte) {
	dir := ext4.RootIno
	for i, n := range sizes {
		if i%100 == 0 {
			dir = must(f.Create(b.Context(), ext4.RootIno, fmt.Sprintf("dir%d", i), attr(syscall.S_IFDIR|0o755)))
		}
		ino := must(f.Create(b.Context(), dir, fmt.Sprintf("file%d", i), attr(syscall.S_IFREG|0o644)))
		w := must(f.Writer(b.Context(), ino, int64(n)))
		for at := 0; at < n; at += 32 << 10 {
			must(w.Write(data[at:min(n, at+32<<10)]))
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
	flush(b, f)
}

// BenchmarkCreate100k asks how fast empty files are made in one directory.
func BenchmarkCreate100k(b *testing.B) {
	const n = 100_000
	a := attr(syscall.S_IFREG | 0o644)
	for b.Loop() {
		f := format(b, backendtest.NewMemVolume(4<<30))
		for i := range n {
			must(f.Create(b.Context(), ext4.RootIno, fmt.Sprintf("a file with number %d", i), a))
		}
		flush(b, f)
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

// BenchmarkFormat64G asks how long a layer of the usual size takes to begin.
func BenchmarkFormat64G(b *testing.B) {
	for b.Loop() {
		format(b, backendtest.NewMemVolume(64<<30))
	}
}
