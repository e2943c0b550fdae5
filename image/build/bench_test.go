// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/pierrec/lz4/v4"

	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// benchSize is how much the files of the layer of the benchmarks hold, in
// bytes.
const benchSize = 450 << 20

// BenchmarkApply: what does it cost to make a layer of a tar.gz, compared with
// decompressing, hashing and reading the tar?
func BenchmarkApply(b *testing.B) {
	name, id := benchLayer(b)
	compare(b,
		func() error { return readTar(name) },
		func() error {
			return applied(b, name, build.Layer{DiffID: id}, io.Discard)
		})
}

// BenchmarkConvert: what does it cost to make the blob of a layer of a tar.gz,
// compared with recompressing the tar by LZ4, which is the least one can do?
func BenchmarkConvert(b *testing.B) {
	name, id := benchLayer(b)
	compare(b,
		func() error { return recompress(name) },
		func() error { return converted(b, name, id) })
}

// BenchmarkTarget: what does it cost to make the blob of a layer whose content
// stays in the tar.gz, and the index of that, compared with one that has it, and
// how large are the two?
func BenchmarkTarget(b *testing.B) {
	name, id := benchLayer(b)
	for _, fsType := range []string{build.Ext4, build.EROFS} {
		b.Run(fsType, func(b *testing.B) {
			var layer, index int64
			compare(b,
				func() error { return converted(b, name, id) },
				func() (err error) {
					layer, index, err = mapped(b, name, id, fsType)
					return err
				})
			info, err := os.Stat(name)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(layer)/float64(info.Size())*100, "%-layer-of-tar.gz")
			b.ReportMetric(float64(index)/float64(info.Size())*100, "%-index-of-tar.gz")
		})
	}
}

// mapped makes the blob of the layer without its content, and the index of the
// tar.gz. It returns their sizes in bytes.
func mapped(b *testing.B, name string, id digest.Digest, fsType string) (layer, index int64, err error) {
	var n counter
	blob, err := convert.NewBlob(func(w io.Writer, names lsmt.CommitOptions) error {
		return appliedTo(b, build.Options{FSType: fsType, Target: true}, name, build.Layer{DiffID: id, Names: names, Index: &n}, w)
	}, convert.BlobOptions{ChainID: id, TempDir: b.TempDir()})
	if err != nil {
		return 0, 0, err
	}
	return blob.Descriptor().Size, int64(n), blob.Close()
}

// A counter counts bytes.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// converted makes the blob of the layer.
func converted(b *testing.B, name string, id digest.Digest) error {
	blob, err := convert.NewBlob(func(w io.Writer, names lsmt.CommitOptions) error {
		return applied(b, name, build.Layer{DiffID: id, Names: names}, w)
	}, convert.BlobOptions{ChainID: id, TempDir: b.TempDir()})
	if err != nil {
		return err
	}
	return blob.Close()
}

// compare runs both in turn and reports how many times as much CPU op took as
// the baseline, how many times as long, each at its best, and the most memory
// that each had resident. Only the first says much on a machine that others use
// too.
func compare(b *testing.B, baseline, op func() error) {
	b.SetBytes(benchSize)
	var best, base usage
	for b.Loop() {
		base = base.better(measured(b, baseline))
		best = best.better(measured(b, op))
	}
	b.ReportMetric(float64(best.cpu)/float64(base.cpu), "x-CPU-of-baseline")
	b.ReportMetric(float64(best.wall)/float64(base.wall), "x-time-of-baseline")
	b.ReportMetric(float64(best.peak)/(1<<20), "MiB-peak-RSS")
	b.ReportMetric(float64(base.peak)/(1<<20), "MiB-peak-RSS-of-baseline")
}

// A usage is what something took.
type usage struct {
	cpu, wall time.Duration
	peak      int64 // bytes resident
}

// better returns the least time of both, where zero is not yet anything, and
// the most memory.
func (u usage) better(v usage) usage {
	if u == (usage{}) {
		return v
	}
	return usage{min(u.cpu, v.cpu), min(u.wall, v.wall), max(u.peak, v.peak)}
}

func measured(b *testing.B, op func() error) usage {
	b.Helper()
	resetPeak(b)
	start, cpu := time.Now(), cpuTime(b)
	if err := op(); err != nil {
		b.Fatal(err)
	}
	return usage{cpuTime(b) - cpu, time.Since(start), peakRSS(b)}
}

// cpuTime returns what the process has used, and those that it has run.
func cpuTime(b *testing.B) (all time.Duration) {
	b.Helper()
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		all += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return all
}

// resetPeak makes peakRSS begin anew. Pools let go of what is in them when the
// second collection finds it unused.
func resetPeak(b *testing.B) {
	b.Helper()
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
}

// peakRSS returns the most memory, in bytes, that was resident at a time.
func peakRSS(b *testing.B) (n int64) {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(after, &n); err != nil {
		b.Fatal(err)
	}
	return n << 10
}

// applied makes a layer of the tar.gz and writes it to w.
func applied(b *testing.B, name string, l build.Layer, w io.Writer) error {
	return appliedTo(b, build.Options{}, name, l, w)
}

func appliedTo(b *testing.B, opts build.Options, name string, l build.Layer, w io.Writer) error {
	opts.Dir = b.TempDir()
	c := build.New(opts)
	defer c.Close()
	r := fileLayer(name)(b)
	defer r.Close()
	return c.Build(b.Context(), w, r, l)
}

// readTar reads a tar.gz to its end.
func readTar(name string) error {
	return gunzip(name, func(r io.Reader) error {
		r = io.TeeReader(r, sha256.New())
		for t := tar.NewReader(r); ; {
			if _, err := t.Next(); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, t); err != nil {
				return err
			}
		}
	})
}

// recompress turns gzip into LZ4, both as fast as the libraries do it.
func recompress(name string) error {
	return gunzip(name, func(r io.Reader) error {
		w := lz4.NewWriter(io.Discard)
		if err := w.Apply(lz4.ConcurrencyOption(-1)); err != nil {
			return err
		}
		_, err := io.Copy(w, r)
		return errors.Join(err, w.Close())
	})
}

func gunzip(name string, f func(io.Reader) error) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := gzip.NewReader(bufio.NewReaderSize(in, 1<<20))
	if err != nil {
		return err
	}
	return f(z)
}

// benchLayer writes a tar.gz of files as systems have them: most are small,
// most bytes are in large ones, and they compress as programs do.
func benchLayer(b *testing.B) (name string, id digest.Digest) {
	b.Helper()
	name = filepath.Join(b.TempDir(), "layer.tar.gz")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		b.Fatal(err)
	}
	digester := digest.SHA256.Digester()
	err = writeFiles(io.MultiWriter(z, digester.Hash()))
	if err := errors.Join(err, z.Close(), f.Close()); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("the layer compresses to %d%%", info.Size()*100/benchSize)
	return name, digester.Digest()
}

func writeFiles(out io.Writer) error {
	rnd := rand.New(rand.NewPCG(1, 2))
	content := program(rnd)
	w := tar.NewWriter(out)
	for n, left := 0, benchSize; left > 0; n++ {
		size := min(left, 1<<(6+rnd.IntN(17)), len(content)) // 64 bytes to 4 MiB
		size -= rnd.IntN(size/2 + 1)
		h := tar.Header{Name: fmt.Sprintf("usr/lib/%d/%d", n/200, n), Mode: 0o644, Size: int64(size), ModTime: epoch}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		at := rnd.IntN(len(content) - size + 1)
		if _, err := w.Write(content[at : at+size]); err != nil {
			return err
		}
		left -= size
	}
	return w.Close()
}

// program returns 16 MiB that compress as programs do, to about 40 per cent:
// instructions, some far more frequent than others, with operands.
func program(rnd *rand.Rand) []byte {
	rank := rand.NewZipf(rnd, 1.2, 4, 4000)
	p := make([]byte, 0, 16<<20+16)
	for len(p) < 16<<20 {
		op := (rank.Uint64() + 1) * 0x9E3779B97F4A7C15
		for n := 2 + op%7; n > 0; n-- {
			p = append(p, byte(op>>(8*n)))
		}
		if op%4 == 0 {
			p = append(p, byte(rnd.Uint32()))
		}
	}
	return p
}
