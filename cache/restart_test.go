// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/cache"
)

func dataFile(dir, name string) string {
	return filepath.Join(dir, dgst(name).Encoded()+".data")
}

func tagsFile(dir, name string) string {
	return filepath.Join(dir, dgst(name).Encoded()+".tags")
}

// fill caches all of data under name in dir, and closes everything.
func fill(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	c, err := cache.Open(cache.Options{Dir: dir, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer closeCache(t, c)
	b, err := c.Blob(dgst(name), newSource(data))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Prefetch(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
}

// reread opens the cache in dir, reads all of data through it, and returns
// what the source was asked for.
func reread(t testing.TB, dir, name string, data []byte) ([]span, cache.Stats) {
	t.Helper()
	c, err := cache.Open(cache.Options{Dir: dir, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer closeCache(t, c)
	src := newSource(data)
	b, err := c.Blob(dgst(name), src)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	wantBytes(t, b, data, 0, int64(len(data)))
	c.Quiesce()
	return src.asked(), c.Stats()
}

func TestRestartKeepsBlocks(t *testing.T) {
	dir, data := t.TempDir(), content(3<<20+100)
	fill(t, dir, "x", data)
	asked, stats := reread(t, dir, "x", data)
	if len(asked) != 0 {
		t.Errorf("asked for %v after a restart, want nothing", asked)
	}
	if stats.UsedBytes < int64(len(data)) || stats.CorruptBlocks != 0 || stats.Resets != 0 {
		t.Errorf("got %+v", stats)
	}
}

// TestDamageCostsBlocksNeverBytes does to the files what crashes, power cuts
// and failing disks do, at many places, and reads everything back.
func TestDamageCostsBlocksNeverBytes(t *testing.T) {
	const size = 300<<10 + 100
	data, origin := content(size), t.TempDir()
	fill(t, origin, "x", data)
	zero := func(p []byte) { clear(p) }
	flip := func(p []byte) { p[len(p)/2] ^= 0x10 }
	noise := func(p []byte) { copy(p, content(int64(len(p)))); p[0]++ }
	type damage struct {
		name string
		do   func(dir string) error
	}
	var all []damage
	for _, f := range []func(dir, name string) string{dataFile, tagsFile} {
		end := fileSize(t, f(origin, "x"))
		kind := filepath.Ext(f("", "x"))
		for _, off := range offsets(end) {
			all = append(all, damage{fmt.Sprintf("truncate %s to %d", kind, off), func(dir string) error {
				return os.Truncate(f(dir, "x"), off)
			}}, damage{fmt.Sprintf("zero %s from %d", kind, off), func(dir string) error {
				return patch(f(dir, "x"), off, end-off, zero)
			}}, damage{fmt.Sprintf("zero %s up to %d", kind, off), func(dir string) error {
				return patch(f(dir, "x"), 0, off, zero)
			}})
			if off < end {
				n := min(4096, end-off)
				all = append(all, damage{fmt.Sprintf("tear %s at %d", kind, off), func(dir string) error {
					return patch(f(dir, "x"), off, n, noise)
				}}, damage{fmt.Sprintf("flip a bit of %s after %d", kind, off), func(dir string) error {
					return patch(f(dir, "x"), off, n, flip)
				}})
			}
		}
		all = append(all, damage{"lose " + kind, func(dir string) error { return os.Remove(f(dir, "x")) }})
	}
	all = append(all, damage{"swap two blocks with their tags", func(dir string) error {
		return errors.Join(swap(dataFile(dir, "x"), 0, 16<<10, 16<<10), swap(tagsFile(dir, "x"), 64, 72, 8))
	}})
	for _, d := range all {
		t.Run(d.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
				t.Fatal(err)
			}
			if err := d.do(dir); err != nil {
				t.Fatal(err)
			}
			reread(t, dir, "x", data)
			if asked, _ := reread(t, dir, "x", data); len(asked) != 0 {
				t.Errorf("the cache did not heal: asked for %v", asked)
			}
		})
	}
}

// offsets returns places worth cutting a file of n bytes at.
func offsets(n int64) []int64 {
	offs := []int64{0, 1, 8, 12, 16, 24, 56, 60, 63, 64, 65, 72, 4096, 16<<10 - 1, 16 << 10, 16<<10 + 1, n / 2, n - 1, n}
	var in []int64
	for _, off := range offs {
		if off <= n {
			in = append(in, off)
		}
	}
	return in
}

func fileSize(t *testing.T, name string) int64 {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// patch changes bytes [off, off+n) of a file by f.
func patch(name string, off, n int64, f func([]byte)) error {
	p, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if n > 0 {
		f(p[off : off+n])
	}
	return os.WriteFile(name, p, 0o600)
}

// swap exchanges n bytes at a with n bytes at b.
func swap(name string, a, b, n int64) error {
	return patch(name, 0, b+n, func(p []byte) {
		tmp := append([]byte(nil), p[a:a+n]...)
		copy(p[a:], p[b:b+n])
		copy(p[b:], tmp)
	})
}

// TestPowerCutAtAnyWrite replays what a fill left, as if any subset of its
// pages had reached the disk when the power went.
func TestPowerCutAtAnyWrite(t *testing.T) {
	const size, page = 512<<10 + 77, 512
	data, origin := content(size), t.TempDir()
	fill(t, origin, "x", data)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 40 {
		dir := t.TempDir()
		lost := r.Float64()
		for _, f := range []string{dataFile("", "x"), tagsFile("", "x")} {
			p, err := os.ReadFile(filepath.Join(origin, f))
			if err != nil {
				t.Fatal(err)
			}
			for off := 0; off < len(p); off += page {
				if r.Float64() < lost {
					clear(p[off:min(off+page, len(p))])
				}
			}
			if r.IntN(3) == 0 {
				p = p[:r.IntN(len(p)+1)]
			}
			if err := os.WriteFile(filepath.Join(dir, f), p, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		reread(t, dir, "x", data)
	}
}

// TestKill kills a process that fills and evicts a cache, many times at any
// instant, and reads everything back after each.
func TestKill(t *testing.T) {
	dir, data := t.TempDir(), content(crashSize)
	var hits int64
	for round := range 12 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$", "-test.count=1")
		cmd.Env = append(os.Environ(), fmt.Sprintf("CACHE_CRASH_DIR=%s", dir), fmt.Sprintf("CACHE_CRASH_SEED=%d", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 1+round*7 && lines.Scan(); n++ {
			if strings.Contains(lines.Text(), "FAIL") {
				t.Error(lines.Text())
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait() // says that it was killed
		c := openCache(t, cache.Options{Dir: dir, Size: crashSize / 2})
		b := openBlob(t, c, "x", newSource(data))
		for off := int64(0); off < crashSize; off += 64 << 10 {
			wantBytes(t, b, data, off, 64<<10)
		}
		hits += b.Stats().Hits
		closeCache(t, c)
	}
	if hits == 0 {
		t.Error("nothing survived any kill")
	}
}

const crashSize = 8 << 20

// TestCrashChild is the process that TestKill kills.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv("CACHE_CRASH_DIR")
	if dir == "" {
		t.Skip("runs as a child of TestKill")
	}
	seed, err := strconv.ParseUint(os.Getenv("CACHE_CRASH_SEED"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	data := content(crashSize)
	c := openCache(t, cache.Options{Dir: dir, Size: crashSize / 2})
	b := openBlob(t, c, "x", newSource(data))
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), seed))
			for {
				off := r.Int64N(crashSize - 4096)
				wantBytes(t, b, data, off, 4096)
				if r.IntN(8) == 0 {
					_ = b.Drop(t.Context(), off, 4096)
				}
				_, _ = fmt.Fprintln(os.Stdout, "read", off)
			}
		})
	}
	wg.Wait()
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	openCache(t, cache.Options{Dir: dir})
	_, err := cache.Open(cache.Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "in use by another process") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v; want an error naming the directory", err)
	}
}

func TestForeignAndHalfFiles(t *testing.T) {
	dir := t.TempDir()
	hex := dgst("x").Encoded()
	other := dgst("y").Encoded()
	for _, name := range []string{"README", hex, hex + ".data", other + ".tags", strings.ToUpper(hex) + ".tags"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	closeCache(t, openCache(t, cache.Options{Dir: dir}))
	var got []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := []string{strings.ToUpper(hex) + ".tags", hex, "README", "lock"}
	if diff := cmp.Diff(want, got, cmp.Transformer("set", toSet)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func toSet(names []string) map[string]bool {
	set := make(map[string]bool)
	for _, n := range names {
		set[n] = true
	}
	return set
}

// TestLinksAreNotFollowed: who can write to the directory must not make the
// cache write elsewhere.
func TestLinksAreNotFollowed(t *testing.T) {
	dir, data := t.TempDir(), content(64<<10)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := openCache(t, cache.Options{Dir: dir})
	for _, name := range []string{dataFile(dir, "x"), tagsFile(dir, "x")} {
		if err := os.Symlink(victim, name); err != nil {
			t.Fatal(err)
		}
	}
	b := openBlob(t, c, "x", newSource(data))
	wantBytes(t, b, data, 0, 64<<10)
	c.Quiesce()
	wantBytes(t, b, data, 0, 64<<10)
	if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestOtherSizeOrBlockSizeResets(t *testing.T) {
	dir, data := t.TempDir(), content(200<<10)
	fill(t, dir, "x", data)
	for _, c := range []struct {
		name string
		opts cache.Options
		data []byte
	}{
		{"other size", cache.Options{Dir: dir}, data[:150<<10]},
		{"other block size", cache.Options{Dir: dir, BlockSize: 4096}, data[:150<<10]},
	} {
		t.Run(c.name, func(t *testing.T) {
			ca := openCache(t, c.opts)
			src := newSource(c.data)
			b := openBlob(t, ca, "x", src)
			wantBytes(t, b, c.data, 0, b.Size())
			if len(src.asked()) == 0 || ca.Stats().Resets != 1 {
				t.Errorf("old blocks were used: %+v", ca.Stats())
			}
			ca.Quiesce()
		})
	}
}

func TestSourcesOfOneKeyMustAgreeOnSize(t *testing.T) {
	c := openCache(t, cache.Options{})
	openBlob(t, c, "x", newSource(content(1000)))
	src := newSource(content(1001))
	if _, err := c.Blob(dgst("x"), src); err == nil || src.isClosed() {
		t.Errorf("got %v, source closed %t; want an error, and the source left open", err, src.isClosed())
	}
}

func TestHostileSizes(t *testing.T) {
	c := openCache(t, cache.Options{})
	for _, size := range []int64{-1, 1 << 62} {
		if _, err := c.Blob(dgst("x"), sized{newSource(nil), size}); err == nil {
			t.Errorf("size %d was accepted", size)
		}
	}
	b := openBlob(t, c, "big", sized{newSource(nil), 16 << 40})
	if err := b.Drop(t.Context(), 0, 16<<40); err != nil {
		t.Error(err)
	}
}

type sized struct {
	*source
	size int64
}

func (s sized) Size() int64 { return s.size }

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		opts cache.Options
		want string
	}{
		{"no directory", cache.Options{}, "no directory is named"},
		{"directory is a file", cache.Options{Dir: file}, "not a directory"},
		{"block size", cache.Options{Dir: "x", BlockSize: 5000}, "block size 5000"},
		{"extent below block", cache.Options{Dir: "x", BlockSize: 64 << 10, ExtentSize: 4096}, "extent size 4096"},
		{"largest extent", cache.Options{Dir: "x", MaxExtent: 128 << 20}, "largest extent"},
		{"little memory", cache.Options{Dir: "x", MaxInflightBytes: 1}, "in flight"},
	} {
		if _, err := cache.Open(c.opts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := os.Stat("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a directory was made for bad options")
	}
}
