// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"path"
	"strconv"
	"strings"
)

// startModules are imported by every Python before the first line of a program,
// as far as they are not in its own file.
var startModules = [...]imported{
	{name: "encodings", from: []string{"aliases", "utf_8"}},
	{name: "sitecustomize"},
	{name: "codecs"},
	{name: "io"},
	{name: "abc"},
	{name: "site"},
	{name: "os"},
	{name: "stat"},
	{name: "_collections_abc"},
	{name: "posixpath"},
	{name: "genericpath"},
	{name: "_sitebuiltins"},
}

// localeFiles are read by it for UTF-8 where the environment names no other
// locale (PEP 538).
var localeFiles = [...]string{
	"/usr/lib/locale/C.utf8/LC_CTYPE", "/usr/lib/locale/C.UTF-8/LC_CTYPE",
}

// openInterpreter asks for what the program f begins with, if it is Python.
func (s *scout) openInterpreter(ctx context.Context, f *file, e *elf) {
	version, ok := strings.CutPrefix(path.Base(f.name), "python3.")
	minor, err := strconv.Atoi(version)
	if !ok || err != nil {
		return
	}
	im := importer{s: s, ctx: ctx, python: python{minor: minor}}
	im.dir = path.Join(path.Dir(path.Dir(f.name)), "lib", path.Base(f.name))
	im.roots = im.path()
	for _, m := range startModules {
		im.take(m)
	}
	for _, name := range localeFiles {
		s.find(ctx, name, s.opts.Whole, nil)
	}
	for _, d := range libraryDirs(e.machine) {
		s.find(ctx, path.Join(d, "gconv/gconv-modules.cache"), s.opts.Whole, nil)
	}
}
