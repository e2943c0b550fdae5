// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// BenchmarkColdRead reads every file of Debian with Python through a lazily
// mounted image of which the node has nothing, one after the other, against a
// plain pull and unpack of the same image, without and with reading every file
// after it. The registry is on the same machine and as fast as that is.
func BenchmarkColdRead(b *testing.B) {
	need.FUSE(b)
	need.Loop(b)
	registry, oci, block := debianImages(b)

	var pull, pullAndRead, lazy time.Duration
	for b.Loop() {
		node := e2e.Start(b, e2e.Options{Overlaybd: true, Registry: registry})
		dropPageCache(b)
		begun := time.Now()
		node.Pull(oci)
		pull += time.Since(begun)
		n := readTree(b, node.Mount("overlayfs", oci))
		pullAndRead += time.Since(begun)

		dropPageCache(b)
		begun = time.Now()
		node.Ctr("rpull", "--plain-http", block)
		if got := readTree(b, node.Mount("overlaybd", block)); got != n {
			b.Fatalf("read %d bytes of the lazy image, %d of the plain one", got, n)
		}
		lazy += time.Since(begun)
		b.SetBytes(n)
	}
	b.ReportMetric(float64(pull)/float64(lazy), "x-of-pull")
	b.ReportMetric(float64(pullAndRead)/float64(lazy), "x-of-pull-and-read")
}

// debianImages returns a registry with Debian and its conversion.
func debianImages(b *testing.B) (registry *e2e.Registry, oci, block string) {
	b.Helper()
	registry = e2e.StartRegistry(b)
	oci = registry.Push(b, e2e.Debian(b), "image", "oci")
	block = registry.Host + "/image:block"
	convert := e2e.Start(b, e2e.Options{Overlaybd: true, Registry: registry})
	convert.Fetch(oci)
	convert.Ctr("obdconv", "--vsize", "2", oci, block)
	convert.Ctr("images", "push", "--local", "--plain-http", block)
	return registry, oci, block
}

// BenchmarkWarmRead reads the largest files of a container's root, whose blocks
// are in the node's cache, against the same file system in a plain file on a
// loop device. The page cache holds what lies below either, and nothing of the
// files themselves.
func BenchmarkWarmRead(b *testing.B) {
	need.FUSE(b)
	need.Loop(b)
	registry, _, block := debianImages(b)
	node := e2e.Start(b, e2e.Options{Overlaybd: true, Registry: registry})
	node.Ctr("rpull", "--plain-http", block)
	ours := openLargest(b, node.Mount("overlaybd", block))
	plain := openLargest(b, mountFlat(b, node))
	for _, c := range []struct {
		name    string
		readers int
		read    func(files []*os.File, seed uint64) error
	}{
		{"Seq", 1, readAll},
		{"Rand4K", 1, readRandom},
		{"Rand4Kx32", 32, readRandom},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took [2]time.Duration
			for b.Loop() {
				for i, files := range [][]*os.File{plain, ours} {
					forget(b, files)
					begun := time.Now()
					inParallel(b, c.readers, func(seed uint64) error { return c.read(files, seed) })
					took[i] += time.Since(begun)
				}
			}
			b.ReportMetric(float64(took[0])/float64(took[1]), "x-of-plain-loop")
		})
	}
}

// mountFlat mounts the disk of the image on the node, as a plain file.
func mountFlat(b *testing.B, node *e2e.Env) (root string) {
	b.Helper()
	configs, err := filepath.Glob(filepath.Join(node.Dir, "snapshotter", "snapshots", "*", "block", "config.v1.json"))
	if err != nil || len(configs) == 0 {
		b.Fatalf("no disk on the node: %v", err)
	}
	slices.SortFunc(configs, func(x, y string) int { return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)) })
	disk := filepath.Join(b.TempDir(), "disk.img")
	flatten := exec.CommandContext(b.Context(), filepath.Join(e2e.Bin(b), "overlaybd"), "flatten", configs[len(configs)-1], disk)
	if out, err := flatten.CombinedOutput(); err != nil {
		b.Fatalf("flatten: %v\n%s", err, out)
	}
	root = b.TempDir()
	m := mount.Mount{Type: "ext4", Source: disk, Options: []string{"ro", "loop"}}
	if err := m.Mount(root); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := mount.UnmountAll(root, 0); err != nil {
			b.Error(err)
		}
	})
	return root
}

// largest is how many files the warm reads are of.
const largest = 16

// openLargest opens the largest files below root.
func openLargest(b *testing.B, root string) (files []*os.File) {
	b.Helper()
	type found struct {
		name string
		size int64
	}
	var all []found
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			all = append(all, found{name, info.Size()})
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	slices.SortFunc(all, func(x, y found) int { return cmp.Or(cmp.Compare(y.size, x.size), cmp.Compare(x.name, y.name)) })
	for _, f := range all[:largest] {
		file, err := os.Open(f.name)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = file.Close() })
		files = append(files, file)
	}
	return files
}

func readAll(files []*os.File, _ uint64) error {
	buf := make([]byte, 256<<10)
	for _, f := range files {
		r := io.NewSectionReader(f, 0, math.MaxInt64)
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
			return err
		}
	}
	return nil
}

// readRandom reads 4 KiB in 256 places.
func readRandom(files []*os.File, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 4096)
	for range 256 {
		f := files[rnd.IntN(len(files))]
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if _, err := f.ReadAt(buf, rnd.Int64N(info.Size()/4096)*4096); err != nil {
			return err
		}
	}
	return nil
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

// forget drops the files' pages.
func forget(b *testing.B, files []*os.File) {
	b.Helper()
	for _, f := range files {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
	}
}

func dropPageCache(b *testing.B) {
	b.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		b.Fatal(err)
	}
}

// readTree reads all files below root and returns their size in bytes.
func readTree(b *testing.B, root string) (n int64) {
	b.Helper()
	buf := make([]byte, 1<<20)
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		for {
			k, err := f.Read(buf)
			n += int64(k)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
