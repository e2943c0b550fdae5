// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Bounds of what a tree keeps and does. A file system made to be slow reaches
// them; then nothing more is found in it.
const (
	maxDirs    = 4 << 10
	maxEntries = 64 << 10 // names in all of them
	maxHops    = 40       // symbolic links in one path
	maxLookups = 1 << 20
)

// A tree finds files of a file system by their paths. It keeps the names of
// the directories that it has seen, since most are asked for again and again,
// above all for what is not there.
type tree struct {
	fs      vfs.Reader
	dirs    map[string]*dir // by path as asked for, nil if there is none
	entries int
	lookups int
}

// A dir is a directory.
type dir struct {
	path     string // without symbolic links
	names    map[string]vfs.DirEntry
	suffixes []string // of the names that end in .so, from the first dot on
}

func newTree(fs vfs.Reader) *tree { return &tree{fs: fs, dirs: make(map[string]*dir)} }

// has reports whether the directory at path has a name.
func (t *tree) has(ctx context.Context, path, name string) bool {
	d := t.dir(ctx, path)
	if d == nil {
		return false
	}
	_, ok := d.names[name]
	return ok
}

// dir returns the directory at an absolute path, or nil.
func (t *tree) dir(ctx context.Context, path string) *dir {
	hops := maxHops
	return t.walk(ctx, path, &hops)
}

// find returns the file at an absolute path and where it really is.
func (t *tree) find(ctx context.Context, name string) (ino vfs.Ino, real string, ok bool) {
	hops := maxHops
	e, real, ok := t.follow(ctx, path.Clean(name), &hops)
	return e.Ino, real, ok
}

// follow looks up the last element of name, and again while it is a link.
func (t *tree) follow(ctx context.Context, name string, hops *int) (e vfs.DirEntry, real string, ok bool) {
	for {
		parent := t.walk(ctx, path.Dir(name), hops)
		if parent == nil {
			return e, "", false
		}
		if e, ok = parent.names[path.Base(name)]; !ok || e.Type != vfs.TypeSymlink {
			return e, path.Join(parent.path, path.Base(name)), ok
		}
		target, err := t.fs.Readlink(ctx, e.Ino)
		if *hops--; err != nil || *hops < 0 {
			return e, "", false
		}
		if !path.IsAbs(target) {
			target = path.Join(parent.path, target)
		}
		name = path.Clean(target)
	}
}

// walk returns the directory at name, or nil.
func (t *tree) walk(ctx context.Context, name string, hops *int) *dir {
	if t.lookups++; t.lookups > maxLookups {
		return nil
	}
	if d, ok := t.dirs[name]; ok {
		return d
	}
	if len(t.dirs) >= maxDirs || len(name) > maxPath || !path.IsAbs(name) {
		return nil
	}
	d := t.read(ctx, name, hops)
	t.dirs[name] = d
	return d
}

// read reads the directory at name.
func (t *tree) read(ctx context.Context, name string, hops *int) *dir {
	if name == "/" {
		return t.list(ctx, t.fs.Root(), name)
	}
	e, real, ok := t.follow(ctx, name, hops)
	if !ok || e.Type != vfs.TypeDirectory {
		return nil
	}
	if real != name {
		return t.walk(ctx, real, hops)
	}
	return t.list(ctx, e.Ino, real)
}

func (t *tree) list(ctx context.Context, ino vfs.Ino, name string) *dir {
	d := &dir{path: name, names: make(map[string]vfs.DirEntry)}
	for e, err := range t.fs.ReadDir(ctx, ino) {
		if t.entries++; err != nil || t.entries > maxEntries {
			return nil
		}
		d.names[e.Name] = e
		d.note(e.Name)
	}
	return d
}

// maxSuffixes bounds how many suffixes of libraries a directory has: more than
// there are versions of Python.
const maxSuffixes = 16

func (d *dir) note(name string) {
	if !strings.HasSuffix(name, ".so") || len(d.suffixes) >= maxSuffixes {
		return
	}
	suffix := name[strings.IndexByte(name, '.'):]
	if !slices.Contains(d.suffixes, suffix) {
		d.suffixes = append(d.suffixes, suffix)
	}
}
