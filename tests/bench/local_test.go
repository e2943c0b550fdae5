// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"cmp"
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

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// roots are where a node has the files of one image, all of them on its disk.
type roots struct {
	plain string // containerd's overlayfs
	loop  string // the file system of the block image, from a plain file
	block string // the block image, from the cache
}

// BenchmarkLocal reads an image that is on the node, but not in the page cache.
// Whole trees are compared with overlayfs, by the time they take; reads of large
// files with the same disk on a loop device on a plain file, by their rate.
func BenchmarkLocal(b *testing.B) {
	r := onNode(b, e2e.Python(b))
	for _, c := range []struct {
		name string
		read func(testing.TB, string)
	}{
		{"Tar", func(tb testing.TB, root string) { archive(tb, root) }},
		{"Find", statTree},
	} {
		b.Run(c.name, func(b *testing.B) {
			of := []string{r.plain, r.loop, r.block}
			took := inTurns(b, len(of), func(i int) { c.read(b, of[i]) })
			b.ReportMetric(middleRatio(took[1], took[0]), "loop-of-overlayfs")
			b.ReportMetric(middleRatio(took[2], took[0]), "of-overlayfs")
		})
	}
	of := [][]*os.File{openLargest(b, r.loop), openLargest(b, r.block)}
	for _, c := range []struct {
		name    string
		readers int
		read    func(files []*os.File, seed uint64) error
	}{
		{"Seq", 1, readWhole},
		{"Rand4K", 1, readPlaces},
		{"Rand4Kx8", 8, readPlaces},
	} {
		b.Run(c.name, func(b *testing.B) {
			took := inTurns(b, len(of), func(i int) {
				atOnce(b, c.readers, func(seed uint64) error { return c.read(of[i], seed) })
			})
			b.ReportMetric(middleRatio(took[0], took[1]), "x-of-loop")
		})
	}
}

// onNode has the image brought to a node as plain files and as a block image,
// and all of that read once.
func onNode(b *testing.B, img e2e.Image) (r roots) {
	b.Helper()
	registry := converted(b, img)
	node := e2e.Start(b, e2e.Options{Overlaybd: true, Registry: registry})
	plain, block := registry.Host+"/image:overlayfs", registry.Host+"/image:overlaybd"
	node.Pull(plain)
	r.plain = node.Mount("overlayfs", plain)
	node.Ctr("rpull", "--plain-http", block)
	archive(b, node.Mount("overlaybd", block))
	r.block = node.Mount("overlaybd", block) // as on the start of the next container
	r.loop = mountFlat(b, node)
	settle(b, node.Dir)
	return r
}

// mountFlat mounts the disk of the node's image, written to a plain file.
func mountFlat(b *testing.B, node *e2e.Env) (root string) {
	b.Helper()
	specs, err := filepath.Glob(filepath.Join(node.Dir, "snapshotter", "snapshots", "*", "block", "config.v1.json"))
	if err != nil || len(specs) == 0 {
		b.Fatalf("no disk on the node: %v", err)
	}
	top := slices.MaxFunc(specs, func(x, y string) int { return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)) })
	disk := filepath.Join(b.TempDir(), "disk")
	flatten := exec.CommandContext(b.Context(), filepath.Join(e2e.Bin(b), "overlaybd"), "flatten", top, disk)
	if out, err := flatten.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", flatten.Args, err, out)
	}
	fs, err := blockmount.Detect(disk)
	if err != nil {
		b.Fatal(err)
	}
	root = b.TempDir()
	m := mount.Mount{Type: fs, Source: disk, Options: []string{"ro", "loop"}}
	if err := m.Mount(root); err != nil {
		b.Fatal(err)
	}
	atEnd(b, func() error { return mount.UnmountAll(root, 0) })
	return root
}

// settle waits until what was written to the file system of dir is on disk.
func settle(b *testing.B, dir string) {
	b.Helper()
	f, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		b.Fatal(err)
	}
}

// inTurns calls read for 0 to n-1, again and again, and returns how long each
// took. The page cache holds the programs that read, and nothing of the files.
func inTurns(b *testing.B, n int, read func(i int)) [][]time.Duration {
	b.Helper()
	took := make([][]time.Duration, n)
	for b.Loop() {
		for i := range n {
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				b.Fatal(err)
			}
			runQuietly(b, "tar", "--version")
			runQuietly(b, "find", "--version")
			begun := time.Now()
			read(i)
			took[i] = append(took[i], time.Since(begun))
		}
	}
	return took
}

// middleRatio returns the median of a in terms of b, round by round.
func middleRatio(a, b []time.Duration) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i].Seconds() / b[i].Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// statTree has find look at all files below root.
func statTree(tb testing.TB, root string) {
	tb.Helper()
	runQuietly(tb, "find", root, "-size", "+1024G")
}

func runQuietly(tb testing.TB, name string, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// largest is how many files are read as large ones.
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

func readWhole(files []*os.File, _ uint64) error {
	buf := make([]byte, 256<<10)
	for _, f := range files {
		r := io.NewSectionReader(f, 0, math.MaxInt64)
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
			return err
		}
	}
	return nil
}

// readPlaces reads 4 KiB in 2048 places.
func readPlaces(files []*os.File, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 4096)
	for range 2048 {
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

// atOnce runs n readers of different seeds.
func atOnce(b *testing.B, n int, read func(seed uint64) error) {
	b.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := read(uint64(i)); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}
