// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	// maxModule is the largest compiled module, in bytes, that is looked at.
	maxModule = 1 << 20

	// maxNames bounds the names that one statement takes from a module.
	maxNames = 1 << 10

	// maxPackages is how deep packages lie in one another.
	maxPackages = 32
)

// unknownModule is what is read of a module found by its content, whose size is
// not known: as much as the kernel reads at once.
const unknownModule = 128 << 10

// openModule asks for the modules that f, a compiled Python module, imports.
func (s *scout) openModule(ctx context.Context, f *file) {
	n := int64(maxModule)
	switch {
	case f.size == 0:
		n = unknownModule
	case !f.asked:
		f.asked = true
		s.want(f, 0, f.size)
		return
	}
	p, m, err := parsePyc(f.head(n))
	if err != nil {
		return
	}
	im := importer{s: s, ctx: ctx, python: p, dir: sourceDir(f.name, m.file)}
	im.roots = im.path()
	for _, i := range m.imports {
		if s.tired() {
			return
		}
		im.take(i)
	}
}

// sourceDir returns the directory of a module, or "": its file is in the
// directory's __pycache__, and knows the name of its source.
func sourceDir(name, source string) string {
	if name != "" {
		return path.Dir(path.Dir(name))
	}
	if path.IsAbs(source) {
		return path.Dir(path.Clean(source))
	}
	return ""
}

// An importer finds modules as the import system of a version of Python does
// for a module in dir.
type importer struct {
	s      *scout
	ctx    context.Context
	python python
	dir    string   // "" if not known
	roots  []string // sys.path, as it probably is
}

// path returns the directories of sys.path: those of the standard library,
// that which holds the package of the module, and those for other packages, in
// Debian's order: the last of its three has second copies of some modules.
func (im *importer) path() (roots []string) {
	version := fmt.Sprintf("/lib/python3.%d", im.python.minor)
	prefixes := []string{"/usr/local", "/usr"}
	if before, _, ok := strings.Cut(im.dir+"/", version+"/"); ok {
		prefixes = append([]string{before}, prefixes...)
	}
	for _, p := range prefixes {
		roots = append(roots, p+version, p+version+"/lib-dynload")
	}
	if im.dir != "" {
		roots = append(roots, im.top())
	}
	for _, p := range prefixes {
		roots = append(roots, p+version+"/site-packages")
	}
	roots = append(roots, "/usr/local"+version+"/dist-packages", "/usr/lib/python3/dist-packages", "/usr"+version+"/dist-packages")
	return slices.DeleteFunc(roots, func(d string) bool { return im.s.tree.dir(im.ctx, d) == nil })
}

// top returns the directory in which the outermost package around dir is.
func (im *importer) top() string {
	dir := im.dir
	for range maxPackages {
		if !im.s.tree.has(im.ctx, dir, "__init__.py") {
			break
		}
		dir = path.Dir(dir)
	}
	return dir
}

// take asks for an imported module.
func (im *importer) take(i imported) {
	if i.level == 0 {
		if im.frozen(i.name) {
			return
		}
		for _, root := range im.roots {
			if im.module(root, i) {
				return
			}
		}
		return
	}
	if im.dir == "" || i.level > maxPackages {
		return
	}
	dir := im.dir
	for range i.level - 1 {
		dir = path.Dir(dir)
	}
	im.module(dir, i)
}

// module asks for the module i below dir, the packages around it, and the
// modules in it that are taken from it. It reports whether it was there.
func (im *importer) module(dir string, i imported) bool {
	found := i.name == ""
	for n, name := range strings.SplitN(i.name, ".", maxPackages) {
		if i.name == "" {
			break
		}
		switch im.file(dir, name) {
		case isMissing:
			return n > 0
		case isModule:
			return true
		}
		dir, found = path.Join(dir, name), true
	}
	for _, name := range i.from[:min(len(i.from), maxNames)] {
		im.file(dir, name)
	}
	return found
}

// What a name in a directory is to Python.
type kind int

const (
	isMissing kind = iota
	isModule
	isPackage
)

// file asks for the file of the module or package of that name in dir.
func (im *importer) file(dir, name string) kind {
	if strings.ContainsAny(name, "/*") || name == "" {
		return isMissing
	}
	sub := path.Join(dir, name)
	isDir := im.s.tree.has(im.ctx, dir, name) && im.s.tree.dir(im.ctx, sub) != nil
	switch {
	case isDir && im.compiled(sub, "__init__"):
		return isPackage
	case im.compiled(dir, name) || im.extension(dir, name):
		return isModule
	case isDir:
		return isPackage // without a module of its own
	}
	return isMissing
}

// compiled asks for the compiled form of the module of that name in dir.
func (im *importer) compiled(dir, name string) bool {
	cache, file := path.Join(dir, "__pycache__"), name+"."+im.python.tag()+".pyc"
	return im.s.tree.has(im.ctx, cache, file) && im.s.find(im.ctx, path.Join(cache, file), maxModule, nil)
}

// extension asks for the module of that name in dir that is a library.
func (im *importer) extension(dir, name string) bool {
	d := im.s.tree.dir(im.ctx, dir)
	if d == nil {
		return false
	}
	for _, suffix := range d.suffixes {
		if _, ok := d.names[name+suffix]; ok && im.python.loads(suffix) {
			return im.s.find(im.ctx, path.Join(dir, name+suffix), im.s.opts.Whole, nil)
		}
	}
	return false
}

// loads reports whether p loads extension modules whose names end so, such as
// .cpython-311-x86_64-linux-gnu.so.
func (p python) loads(suffix string) bool {
	return suffix == ".so" || suffix == ".abi3.so" || strings.HasPrefix(suffix, "."+p.tag()+"-")
}

// frozen reports whether a module is in the interpreter's own file.
func (im *importer) frozen(name string) bool {
	switch name {
	case "_collections_abc", "_sitebuiltins", "abc", "codecs", "genericpath", "importlib.machinery", "importlib.util",
		"io", "ntpath", "os", "os.path", "posixpath", "runpy", "site", "stat", "zipimport":
		return im.python.minor >= 11
	}
	return false
}
