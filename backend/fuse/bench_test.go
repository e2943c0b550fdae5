// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// benchSize is the size of the file that the benchmarks read, in bytes.
const benchSize = 128 << 20

// BenchmarkRead reads a file of an ext4 image over a loop device on the image
// file itself, over a FUSE device and a loop device, and over the same with
// direct I/O, in turns. The image is in the page cache, what lies above it is
// not: what is measured is the way through the kernel to the volume and back.
func BenchmarkRead(b *testing.B) {
	need.FUSE(b)
	image := ext4Image(b)
	d := export(b, newExporter(b), "bench", backendtest.ReadOnly(openFileVolume(b, image)))
	device, err := os.Open(d.Path())
	if err != nil {
		b.Fatal(err)
	}
	defer device.Close()
	files := []*os.File{openBig(b, image, 0), openBig(b, d.Path(), 0), openBig(b, d.Path(), unix.LO_FLAGS_DIRECT_IO)}
	for _, c := range []struct {
		name    string
		readers int
		bytes   int64 // read by all readers together
		read    func(f *os.File, seed uint64, n int64) error
	}{
		{"Seq", 1, benchSize, readSeq},
		{"Rand4K", 1, 8 << 20, readRandom},
		{"Rand4Kx8", 8, 16 << 20, readRandom},
		{"Rand4Kx32", 32, 16 << 20, readRandom},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(files)) * c.bytes)
			b.ReportAllocs()
			var took [3][]time.Duration
			for b.Loop() {
				for i, f := range files {
					dropCache(b, f)
					dropCache(b, device)
					start := time.Now()
					inParallel(b, c.readers, func(seed uint64) error { return c.read(f, seed, c.bytes/int64(c.readers)) })
					took[i] = append(took[i], time.Since(start))
				}
			}
			b.ReportMetric(medianRatio(took[0], took[1]), "x-of-plain-loop")
			b.ReportMetric(medianRatio(took[0], took[2]), "x-of-plain-loop-direct")
		})
	}
}

// medianRatio returns the median of how much faster b was than a, by round.
func medianRatio(a, b []time.Duration) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i].Seconds() / b[i].Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

func inParallel(b *testing.B, n int, f func(seed uint64) error) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(uint64(i)); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}

func readSeq(f *os.File, _ uint64, n int64) error {
	buf := make([]byte, 256<<10)
	for off := int64(0); off < n; off += int64(len(buf)) {
		if _, err := f.ReadAt(buf, off); err != nil {
			return err
		}
	}
	return nil
}

func readRandom(f *os.File, seed uint64, n int64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 4096)
	for range n / 4096 {
		if _, err := f.ReadAt(buf, rnd.Int64N(benchSize/4096)*4096); err != nil {
			return err
		}
	}
	return nil
}

// ext4Image returns an ext4 image with one file, "big", in it.
func ext4Image(b *testing.B) string {
	b.Helper()
	root, image := b.TempDir(), filepath.Join(b.TempDir(), "ext4")
	big, err := os.Create(filepath.Join(root, "big"))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(big, rand.NewChaCha8([32]byte{1}), benchSize); err != nil {
		b.Fatal(err)
	}
	if err := big.Close(); err != nil {
		b.Fatal(err)
	}
	run(b, "mkfs.ext4", "-q", "-F", "-d", root, image, fmt.Sprintf("%dk", benchSize*3/2>>10))
	if _, err := os.ReadFile(image); err != nil { // warm
		b.Fatal(err)
	}
	return image
}

// openBig mounts the image in file over a loop device and opens its file.
func openBig(b *testing.B, file string, loopFlags uint32) *os.File {
	b.Helper()
	loop, release := attachLoop(b, file, loopFlags|unix.LO_FLAGS_READ_ONLY)
	dir, _ := mount(b, loop, "ext4", unix.MS_RDONLY, "noload")
	release()
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	return f
}

// dropCache empties the page cache of f, but not that of the image below it.
func dropCache(b *testing.B, f *os.File) {
	b.Helper()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}
