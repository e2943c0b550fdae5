// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"path"
	"slices"
	"strings"
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
		return
	}
	for _, p := range e.parts(s.opts.Part) {
		s.want(f, p.off, p.n)
	}
	if n <= s.opts.Whole || f.program && n <= 2*s.opts.Whole {
		s.wantWhole(f, n)
	}
}

// link asks for the libraries that f needs, where the dynamic linker would look
// for them, and for the linker.
func (s *scout) link(ctx context.Context, f *file, e *elf) {
	l, err := e.links(f)
	if err != nil {
		return
	}
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
	for _, name := range l.needed {
		s.library(ctx, name, search, rpath)
	}
}

// maxRpath bounds the directories that a program passes on to its libraries.
const maxRpath = 64

// library asks for a library, in the first directory that has it.
func (s *scout) library(ctx context.Context, name string, search, rpath []string) {
	if path.IsAbs(name) {
		s.find(ctx, name, s.opts.Whole, rpath)
		return
	}
	for _, d := range search {
		if s.tree.has(ctx, d, name) {
			s.find(ctx, path.Join(d, name), s.opts.Whole, rpath)
			return
		}
	}
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
