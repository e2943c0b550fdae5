// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// openELF asks for the rest of a program or library, and then for those that
// it names.
func (s *scout) openELF(ctx context.Context, f *file, head []byte) {
	e, err := parseELF(head)
	if err != nil {
		return
	}
	if f.asked {
		s.link(ctx, f, e)
		if f.size > 0 && f.size <= smallFile {
			s.openNames(ctx, f)
		}
		return
	}
	f.asked = true
	if f.name == "" {
		s.identify(ctx, f)
	}
	s.openInterpreter(ctx, f, e)
	n := max(f.size, e.size())
	if n <= smallFile {
		s.want(f, 0, n)
		f.whole = true
		return
	}
	part, whole := s.opts.Part, n <= cmp.Or(f.most, s.opts.Whole) || f.program && n <= 2*s.opts.Whole
	if whole {
		part = n
		for _, r := range e.rest() {
			s.wantBesides(f, r.off, r.n)
		}
	}
	for _, p := range e.parts(part) {
		if !whole {
			p = p.around()
		}
		s.want(f, p.off, p.n)
	}
	f.whole = f.whole || whole
}

// link asks for the libraries that f needs, where the dynamic linker would look
// for them, and for the linker. A program's own libraries, and those of a module
// that it loads, are fetched in whole, those that only libraries need are not:
// Redis is linked with libsystemd for one function, and that with four libraries
// for compression and cryptography, of which nothing runs.
func (s *scout) link(ctx context.Context, f *file, e *elf) {
	l, err := e.links(f)
	if err != nil {
		return
	}
	s.bind(f, e, l.dynamic)
	if l.interp != "" {
		s.find(ctx, l.interp, s.opts.Whole, nil)
		s.find(ctx, "/etc/ld.so.cache", s.opts.Whole, nil)
	}
	rpath, runpath := f.rpath, f.origin(l.runpath)
	if len(runpath) == 0 {
		rpath = slices.Concat(f.origin(l.rpath), rpath)
	}
	rpath = rpath[:min(len(rpath), maxRpath)]
	search := slices.Concat(rpath, runpath, libraryDirs(e.machine))
	var paths []string
	var entries []vfs.DirEntry
	for _, name := range l.needed {
		if p, e, ok := s.library(ctx, name, search); ok {
			paths, entries = append(paths, p), append(entries, e)
		}
	}
	s.fetchInodes(ctx, entries)
	most := s.opts.Whole
	if f.needed && !s.isBody(f) {
		most = smallFile
	}
	for _, p := range paths {
		s.findAs(ctx, p, file{most: most, rpath: rpath, needed: true, own: f.program})
	}
}

// isBody reports whether f is the body of a program, such as Node.js's libnode:
// its own library, and a huge one. What that is linked with it is going to use.
func (s *scout) isBody(f *file) bool { return f.own && f.size > s.opts.Whole }

// maxRpath bounds the directories that a program passes on to its libraries.
const maxRpath = 64

// library returns the path of a library, in the first directory that has it.
func (s *scout) library(ctx context.Context, name string, search []string) (file string, e vfs.DirEntry, ok bool) {
	if path.IsAbs(name) {
		search, name = []string{path.Dir(name)}, path.Base(name)
	}
	for _, dir := range search {
		if d := s.tree.dir(ctx, dir); d != nil {
			if e, ok := d.names[name]; ok {
				return path.Join(d.path, name), e, true
			}
		}
	}
	return "", e, false
}

// origin returns the absolute ones of dirs, where $ORIGIN is the directory of
// f, if that is known.
func (f *file) origin(dirs []string) (all []string) {
	for _, d := range dirs[:min(len(dirs), maxRpath)] {
		if f.name != "" {
			d = strings.NewReplacer("$ORIGIN", path.Dir(f.name), "${ORIGIN}", path.Dir(f.name)).Replace(d)
		}
		if path.IsAbs(d) {
			all = append(all, path.Clean(d))
		}
	}
	return all
}

// libraryDirs returns where libraries for a machine (e_machine) are, whatever
// the distribution.
func libraryDirs(machine uint16) []string {
	dirs := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"}
	triplet, ok := map[uint16]string{
		21: "powerpc64le-linux-gnu", 62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu", 243: "riscv64-linux-gnu",
	}[machine]
	if !ok {
		return dirs
	}
	return append([]string{"/usr/local/lib/" + triplet, "/lib/" + triplet, "/usr/lib/" + triplet}, dirs...)
}

func isScript(p []byte) bool { return len(p) >= 3 && string(p[:3]) == "#!/" }

// openScript asks for the interpreter of a script.
func (s *scout) openScript(ctx context.Context, head []byte) {
	line := string(head[2:])
	if end := strings.IndexAny(line, "\n\x00"); end >= 0 {
		line = line[:end]
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		return
	}
	s.find(ctx, words[0], s.opts.Whole, nil)
	if path.Base(words[0]) != "env" || len(words) < 2 {
		return
	}
	for _, d := range []string{"/usr/local/bin", "/usr/bin", "/bin"} {
		if s.find(ctx, path.Join(d, words[1]), s.opts.Whole, nil) {
			return
		}
	}
}
