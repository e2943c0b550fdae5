// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// start reads the first block of a file, as a program's start does, and waits
// until nothing happens any more.
func (d *disk) start(v backend.Volume, name string) {
	d.t.Helper()
	_, err := v.ReadAt(context.Background(), make([]byte, 4096), d.extents(name)[0].Off)
	d.must(err)
	synctest.Wait()
}

// watch runs f with a volume that watches d.
func (d *disk) watch(t *testing.T, opts Options, f func(v backend.Volume)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := Wrap(d, opts)
		defer func() {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}()
		f(v)
	})
}

// disks are the file systems that images have.
var disks = []struct {
	fs  string
	new func(testing.TB) *disk
}{{"ext4", newDisk}, {"erofs", newErofs}}

// TestLibrariesAreThoseOfLdd: all that the dynamic linker maps is asked for.
func TestLibrariesAreThoseOfLdd(t *testing.T) {
	for _, d := range disks {
		t.Run(d.fs, func(t *testing.T) { testLibraries(t, d.new(t)) })
	}
}

func testLibraries(t *testing.T, d *disk) {
	t.Helper()
	program, err := filepath.EvalSymlinks(need.Command(t, "openssl"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), need.Command(t, "ldd"), program).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/bin", "/lib", "/lib64"} {
		if target, err := os.Readlink(name); err == nil {
			d.link(name, target)
		}
	}
	var libraries []string
	for _, m := range regexp.MustCompile(`(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		libraries = append(libraries, m[1])
	}
	if len(libraries) < 3 {
		t.Fatalf("ldd said %s", out)
	}
	for _, name := range append(libraries, program) {
		d.copy(name)
	}
	d.copy("/etc/hostname") // which has nothing to do with it
	d.watch(t, Options{Whole: 16 << 20}, func(v backend.Volume) {
		d.start(v, program)
		for _, name := range libraries {
			if !d.wasAsked(name) {
				t.Errorf("%s was not asked for", name)
			}
		}
		if d.wasAsked("/etc/hostname") {
			t.Error("/etc/hostname was asked for")
		}
	})
}

// TestOneWave: what a program needs is asked for side by side, and what that
// needs in the next wave.
func TestOneWave(t *testing.T) {
	d := newDisk(t)
	var needed []any
	for i := range 12 {
		name := fmt.Sprintf("liba%d.so", i)
		needed = append(needed, dtNeeded, name)
		d.file("/usr/lib/"+name, makeELF(0, dtNeeded, fmt.Sprintf("libb%d.so", i)))
		d.file(fmt.Sprintf("/gap%d", i), make([]byte, 2*mergeGap)) // so that none is the neighbour of another
		d.file(fmt.Sprintf("/usr/lib64/libb%d.so", i), makeELF(0, dtNeeded, "liba0.so"))
		d.file(fmt.Sprintf("/gap%d'", i), make([]byte, 2*mergeGap))
	}
	d.file("/usr/bin/program", makeELF(20_000, needed...))
	d.slow = true
	d.watch(t, Options{}, func(v backend.Volume) {
		d.start(v, "/usr/bin/program")
		var waves []int
		for n := d.answer(); n > 0; n = d.answer() {
			waves = append(waves, n)
			synctest.Wait()
		}
		if got := fmt.Sprint(waves); got != "[1 1 12 12]" { // the rest of the program, inodes, libraries
			t.Errorf("requests in waves of %s", got)
		}
	})
}

func TestNeighboursAreOneRequest(t *testing.T) {
	d := newDisk(t)
	for i := range 5 {
		d.file(fmt.Sprintf("/lib/lib%d.so", i), makeELF(0))
	}
	d.file("/bin/program", makeELF(0, dtNeeded, "lib0.so", dtNeeded, "lib1.so", dtNeeded, "lib4.so"))
	d.watch(t, Options{}, func(v backend.Volume) {
		d.start(v, "/bin/program")
		if n := d.requests(); n != 3 || !d.wasAsked("/lib/lib4.so") { // the rest of the program, inodes, the libraries
			t.Errorf("%d requests", n)
		}
	})
}

func TestOriginAndRpath(t *testing.T) {
	d := newDisk(t)
	d.link("/usr/bin/java", "/opt/jvm/bin/java")
	d.file("/opt/jvm/bin/java", makeELF(0, dtNeeded, "libjli.so", dtRunpath, "$ORIGIN/../lib:relative"))
	d.file("/opt/jvm/lib/libjli.so", makeELF(0, dtNeeded, "libdeep.so", dtRpath, "/opt/deep"))
	d.file("/opt/deep/libdeep.so", makeELF(0, dtNeeded, "libinherit.so"))
	d.file("/opt/deep/libinherit.so", makeELF(0, dtNeeded, "/absolute.so", dtNeeded, "missing.so"))
	d.file("/absolute.so", makeELF(0))
	d.watch(t, Options{}, func(v backend.Volume) {
		d.start(v, "/opt/jvm/bin/java")
		for _, name := range []string{"/opt/jvm/lib/libjli.so", "/opt/deep/libdeep.so", "/opt/deep/libinherit.so", "/absolute.so"} {
			if !d.wasAsked(name) {
				t.Errorf("%s was not asked for", name)
			}
		}
	})
}

// TestLargeLibraries: only their tables and data are fetched.
func TestLargeLibraries(t *testing.T) {
	d := newDisk(t)
	large := makeELF(10<<20, dtNeeded, "libnext.so")
	copy(large[elfHeader+elfProgram+16:], "\x00\x00\x50") // data at another address
	large[elfHeader+elfProgram+4] = 5                     // and executable
	d.file("/lib/liblarge.so", large)
	d.file("/gap", make([]byte, 2*mergeGap))
	d.file("/lib/libnext.so", makeELF(0))
	d.file("/bin/program", makeELF(0, dtNeeded, "liblarge.so"))
	d.watch(t, Options{Whole: 1 << 20}, func(v backend.Volume) {
		d.start(v, "/bin/program")
		if d.wasAsked("/lib/liblarge.so") || !d.wasAsked("/lib/libnext.so") {
			t.Error("all of the large library was asked for, or not the one it needs")
		}
	})
}

// TestLibrariesOfLibraries: of those that only libraries need no more is fetched
// than what the dynamic linker reads, and the code that runs at once, until a
// program needs them itself.
func TestLibrariesOfLibraries(t *testing.T) {
	d := newDisk(t)
	const size, runs = 1 << 20, 600 << 10 // where the code is that ends it
	inner := makeELF(size)
	le := binary.LittleEndian
	le.PutUint64(inner[512+elfDynamic:], dtFini)
	le.PutUint64(inner[512+elfDynamic+8:], 0x400000+runs)
	le.PutUint64(inner[elfHeader+2*elfProgram+32:], 2*elfDynamic)
	le.PutUint32(inner[elfHeader+elfProgram+4:], 5) // executable, not written to
	d.file("/lib/libinner.so", inner)
	d.file("/gap", make([]byte, 2*mergeGap))
	d.file("/lib/libouter.so", makeELF(size, dtNeeded, "libinner.so"))
	d.file("/gap'", make([]byte, 2*mergeGap))
	d.file("/bin/program", makeELF(0, dtNeeded, "libouter.so"))
	d.file("/bin/second", makeELF(0, dtNeeded, "libinner.so"))
	part := func(off int64) vfs.Extent {
		return vfs.Extent{Off: d.extents("/lib/libinner.so")[0].Off + off, Len: 4096}
	}
	d.watch(t, Options{}, func(v backend.Volume) {
		d.start(v, "/bin/program")
		if !d.wasAsked("/lib/libouter.so") || !d.covers(part(0)) || !d.covers(part(runs)) {
			t.Error("the program's library was not asked for in whole, or that library's not in part")
		}
		if d.covers(part(runs / 2)) {
			t.Error("all of a library's library was asked for")
		}
		if d.start(v, "/bin/second"); !d.wasAsked("/lib/libinner.so") {
			t.Error("a program's library that was a library's before was not asked for in whole")
		}
	})
}

func TestScripts(t *testing.T) {
	for line, want := range map[string]string{
		"#!/bin/interpreter -x\n":         "/bin/interpreter",
		"#!/usr/bin/env interpreter\n":    "/bin/interpreter",
		"#!/bin/interpreter":              "/bin/interpreter",
		"#!" + strings.Repeat("/", 8000):  "",
		"#!/\n":                           "",
		"#!/loop/x\n":                     "",
		"#!/usr/bin/env ../../../loop/\n": "",
	} {
		d := newDisk(t)
		d.link("/loop", "/loop")
		d.file("/bin/interpreter", makeELF(0))
		d.file("/script", []byte(line))
		d.watch(t, Options{}, func(v backend.Volume) {
			d.start(v, "/script")
			if want != "" && !d.wasAsked(want) || want == "" && d.requests() > 0 {
				t.Errorf("%.40q: %d requests", line, d.requests())
			}
		})
	}
}

// TestModulesAreThoseOfPython: what an interpreter has loaded after an import is
// asked for, and nothing else that lies beside it.
func TestModulesAreThoseOfPython(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("top/__init__.py", "from . import a, constant\nfrom .b import name\nimport alone, spread.inner as i\n")
	write("top/a.py", "constant = 1\nimport top.b.c\n")
	write("top/constant.py", "import missing" /* never run: top has the name before */ +"\n")
	write("top/b/__init__.py", "name = 1\n")
	write("top/b/c.py", "from .. import a\nfrom ..d import *\nclass C: pass\ndef f(): import top.lazy\n")
	write("top/d.py", "try:\n  import top.maybe\nexcept ImportError: pass\n")
	write("top/lazy.py", "")
	write("alone.py", "from top.b import c\n")
	write("spread/inner.py", "")
	write("unused.py", "")
	write("top/constant.py", "")
	loaded := runPython(t, "-c", `import sys
sys.dont_write_bytecode = False
sys.path.insert(0, sys.argv[1])
import top
print("\n".join(m.__cached__ for m in sys.modules.values() if (getattr(m, "__file__", None) or "").startswith(sys.argv[1])))`, root)
	d := newDisk(t)
	all := 0
	err := filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			d.file(p, readFile(t, p))
			d.file(fmt.Sprintf("/gap%d", all), make([]byte, 2*mergeGap))
			all++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for name := range strings.FieldsSeq(string(loaded)) {
		want[name] = true
	}
	d.watch(t, Options{}, func(v backend.Volume) {
		for name := range want {
			if strings.Contains(name, "top/__pycache__/__init__.") {
				d.start(v, name)
			}
		}
		for name := range want {
			if !strings.Contains(name, "top/__pycache__/__init__.") && !d.wasAsked(name) {
				t.Errorf("%s was not asked for", name)
			}
		}
		if n, most := d.requests(), len(want)-1; n > most {
			t.Errorf("%d requests for %d modules", n, most)
		}
	})
}

// TestPythonBegins: the interpreter's first modules are asked for with it.
func TestPythonBegins(t *testing.T) {
	d := newDisk(t)
	d.file("/usr/bin/python3.9", makeELF(0))
	modules := []string{
		"/usr/lib/python3.9/__pycache__/os.cpython-39.pyc", "/usr/lib/python3.9/encodings/__pycache__/utf_8.cpython-39.pyc",
		"/usr/lib/python3.9/encodings/__pycache__/__init__.cpython-39.pyc",
	}
	for _, m := range modules {
		d.file(m, []byte("not a module"))
	}
	d.watch(t, Options{}, func(v backend.Volume) {
		d.start(v, "/usr/bin/python3.9")
		for _, m := range modules {
			if !d.wasAsked(m) {
				t.Errorf("%s was not asked for", m)
			}
		}
	})
}

func TestTotalIsBounded(t *testing.T) {
	d := newDisk(t)
	var needed []any
	for i := range 20 {
		needed = append(needed, dtNeeded, fmt.Sprintf("lib%d.so", i))
		d.file(fmt.Sprintf("/lib/lib%d.so", i), makeELF(100_000))
	}
	d.file("/bin/program", makeELF(0, needed...))
	d.file("/lib/libother.so", makeELF(0))
	d.file("/bin/other", makeELF(0, dtNeeded, "libother.so"))
	d.watch(t, Options{Total: 500_000}, func(v backend.Volume) {
		d.start(v, "/bin/program")
		var sum int64
		for _, r := range d.asked {
			sum += r.n
		}
		if sum == 0 || sum > 500_000+20*4096 { // whole blocks
			t.Errorf("%d bytes", sum)
		}
		<-time.After(2 * quietTime)
		d.start(v, "/bin/other")
		if !d.wasAsked("/lib/libother.so") {
			t.Error("nothing is asked for after a while of silence")
		}
	})
}

// TestNearImage: where requests are answered at once, the image is near after
// all, and is left alone until it was quiet.
func TestNearImage(t *testing.T) {
	d := newDisk(t)
	for i := range 3 * maxNear {
		d.file(fmt.Sprintf("/opt/%d", i), makeELF(0))
	}
	first := d.extents("/opt/0")[0].Off
	d.watch(t, Options{}, func(v backend.Volume) {
		begin := func() {
			t.Helper()
			for i := range 3 * maxNear {
				off := first + int64(i)*4096
				if _, err := v.ReadAt(context.Background(), make([]byte, 4096), off); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
		}
		begin()
		if n := d.requests(); n != maxNear {
			t.Errorf("%d requests", n)
		}
		<-time.After(2 * quietTime)
		begin()
		if n := d.requests(); n != 2*maxNear {
			t.Errorf("%d requests after a while of silence", n)
		}
	})
}

// TestFailingVolume: a file system that cannot be read, or a source that cannot
// be reached, is nobody's problem here.
func TestFailingVolume(t *testing.T) {
	d := newDisk(t)
	d.file("/bin/program", makeELF(0, dtNeeded, "lib.so"))
	at := d.extents("/bin/program")[0].Off
	for _, fault := range []error{errors.New("broken"), fetcher.ErrTemporary} {
		synctest.Test(t, func(t *testing.T) {
			v := Wrap(&failing{d, fault, at}, Options{})
			for range 3 {
				if _, err := v.ReadAt(context.Background(), make([]byte, 4096), at); err != nil {
					t.Error(err)
				}
				synctest.Wait()
			}
			if n := d.requests(); n > 0 {
				t.Errorf("%d requests", n)
			}
			w, ok := v.(*watched)
			if !ok {
				t.Fatal("the volume is not watched")
			}
			w.end() // the disk is used again
			<-w.ended
		})
	}
}

// failing is a volume that can be read in one place only.
type failing struct {
	*disk
	err error
	at  int64
}

func (f *failing) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off != f.at {
		return 0, f.err
	}
	return f.disk.ReadAt(ctx, p, off)
}

// near is a volume all of which is here.
type near struct{ *disk }

func (near) Far() bool { return false }

func TestNearVolumeIsLeftAlone(t *testing.T) {
	v := near{newDisk(t)}
	if w := Wrap(v, Options{}); w != backend.Volume(v) {
		t.Errorf("got %T", w)
	}
}

func TestReadAllocatesNothing(t *testing.T) {
	d := newDisk(t)
	d.file("/bin/program", makeELF(0))
	at := d.extents("/bin/program")[0].Off
	w := &watched{Volume: d, seen: make(chan int64, 1)}
	p := make([]byte, 4096)
	for name, off := range map[string]int64{"a program": at, "something else": 0} {
		if n := testing.AllocsPerRun(100, func() { _, _ = w.ReadAt(t.Context(), p, off) }); n > 0 {
			t.Errorf("a read of %s allocates %v times", name, n)
		}
	}
}
