// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
)

func TestModuleNames(t *testing.T) {
	data := strings.Join([]string{
		"\x7fELF\x02\x01", "", "GLIBC_2.2.5", "libm.so.6", "alone", "pkg.mod", "pkg._sub.mod2", "pkg.mod",
		"pkg/mod.pyx", ".relative", "pkg.", "pkg..mod", "a b.c", strings.Repeat("x.", 100) + "x", "cut.off",
	}, "\x00")
	want := []string{"pkg.mod", "pkg._sub.mod2", "cut.off"}
	if got := moduleNames([]byte(data)); !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	if n := len(moduleNames([]byte(strings.Repeat("a.b\x00", 10)))); n != 1 {
		t.Errorf("%d names, want one once", n)
	}
	var many strings.Builder
	for i := range 10 * maxStrings {
		many.WriteString("a.b" + strings.Repeat("c", i%maxString) + "\x00d.e" + strings.Repeat("f", i%maxString) + "\x00")
	}
	if n := len(moduleNames([]byte(many.String()))); n > maxStrings {
		t.Errorf("%d names, want %d at most", n, maxStrings)
	}
}

// TestExtensionsImport: what an extension module imports by itself is asked for
// once all of it is there, if it is small enough to be searched.
func TestExtensionsImport(t *testing.T) {
	const dir, suffix = "/usr/lib/python3/dist-packages/pkg/", ".cpython-311-x86_64-linux-gnu.so"
	for _, size := range []int{smallFile / 2, 2 * smallFile, maxExtension + 1} {
		d := newDisk(t)
		ext := makeELF(size)
		copy(ext[len(ext)-100:], "\x00pkg.other\x00pkg.missing\x00pkg.sub.deep\x00")
		d.file("/usr/bin/program", makeELF(0, dtNeeded, "first"+suffix, dtRunpath, dir))
		d.file(dir+"first"+suffix, ext)
		d.file(dir+"other"+suffix, makeELF(smallFile/2))
		d.file(dir+"sub/deep"+suffix, makeELF(smallFile/2))
		d.file(dir+"unused"+suffix, makeELF(smallFile/2))
		d.watch(t, Options{}, func(v backend.Volume) {
			d.start(v, "/usr/bin/program")
			for _, name := range []string{"other", "sub/deep"} {
				if got, want := d.wasAsked(dir+name+suffix), size <= maxExtension; got != want {
					t.Errorf("%d bytes: %s was asked for: %v, want %v", size, name, got, want)
				}
			}
			if d.wasAsked(dir + "unused" + suffix) {
				t.Error("what nothing names was asked for")
			}
		})
	}
}

func FuzzModuleNames(f *testing.F) {
	f.Add([]byte("\x7fELF\x00pkg.mod\x00GLIBC_2.2.5\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range moduleNames(data) {
			if len(name) > maxString || strings.ContainsAny(name, "/\x00 ") || !strings.Contains(strings.Trim(name, "."), ".") {
				t.Errorf("%q is no module of a package", name)
			}
		}
	})
}
