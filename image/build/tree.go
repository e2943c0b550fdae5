// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// Bounds of what a file system may make us do.
const (
	maxSymlinks = 255  // followed for one path, as containerd does
	maxDepth    = 4096 // of directories, deeper than any path is long
	maxKnown    = 4096 // directories remembered
	maxPath     = 4096 // bytes of a path that is remembered; PATH_MAX of Linux
)

// A tree finds, makes and deletes files of a file system by their paths.
// Symbolic links on the way are followed inside of it: ".." at the root, and an
// absolute target, lead to the root.
type tree struct {
	fs    vfs.FileSystem
	made  made
	known map[string]vfs.Ino // directories by the path they were asked for
}

// mkdirAll returns the directory dir, which it makes if it is missing, with its
// parents. What it makes is root's and has no time.
func (t *tree) mkdirAll(ctx context.Context, dir string) (vfs.Ino, error) {
	if ino, ok := t.known[dir]; ok {
		return ino, nil
	}
	ino, err := t.walk(ctx, dir, true)
	if err != nil {
		return 0, fmt.Errorf("directory %.200q: %w", dir, err)
	}
	if len(dir) > maxPath {
		return ino, nil
	}
	if len(t.known) >= maxKnown || t.known == nil {
		t.known = make(map[string]vfs.Ino)
	}
	t.known[strings.Clone(dir)] = ino // the header's other strings are let go
	return ino, nil
}

// find returns the file at name, which may be a symbolic link itself.
func (t *tree) find(ctx context.Context, name string) (vfs.Ino, error) {
	dir, base := path.Split(path.Clean("/" + name))
	if base == "" {
		return 0, syscall.EISDIR
	}
	parent, err := t.walk(ctx, dir, false)
	if err != nil {
		return 0, err
	}
	return t.fs.Lookup(ctx, parent, base)
}

// walk follows the path of a directory from the root.
func (t *tree) walk(ctx context.Context, dir string, create bool) (vfs.Ino, error) {
	w := walker{tree: t, ctx: ctx, create: create, at: []vfs.Ino{t.fs.Root()}}
	w.push(dir)
	for len(w.todo) > 0 {
		name := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		if err := w.step(name); err != nil {
			return 0, err
		}
	}
	return w.make()
}

// make makes what is missing. That is left to the end: a path may lead back
// out of a missing directory, which it then is no reason to make.
func (w *walker) make() (dir vfs.Ino, err error) {
	dir = w.at[len(w.at)-1]
	for _, name := range w.beyond {
		parent := dir
		if dir, err = w.fs.Create(w.ctx, parent, name, vfs.Attr{Mode: syscall.S_IFDIR | 0o755}); err != nil {
			return 0, err
		}
		w.made.addImplicit(parent, name, dir)
	}
	return dir, nil
}

// A walker is on its way to a directory.
type walker struct {
	*tree
	ctx    context.Context // of the walk
	create bool
	at     []vfs.Ino // the directories from the root to where it is
	beyond []string  // the names from there on, of directories that are missing
	todo   []string  // names still to go, the next one last
	links  int       // followed so far
}

// push makes name what is to be followed next.
func (w *walker) push(name string) {
	names := strings.Split(name, "/")
	slices.Reverse(names)
	w.todo = append(w.todo, names...)
}

func (w *walker) step(name string) error {
	switch name {
	case "", ".":
		return nil
	case "..":
		w.back()
		return nil
	}
	if depth := len(w.at) + len(w.beyond); depth > maxDepth {
		return fmt.Errorf("%w: directories deeper than %d", ErrUnsafe, maxDepth)
	}
	if len(w.beyond) > 0 {
		w.beyond = append(w.beyond, name)
		return nil
	}
	ino, err := w.fs.Lookup(w.ctx, w.at[len(w.at)-1], name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && w.create:
		w.beyond = append(w.beyond, name)
		return nil
	case err != nil:
		return err
	}
	return w.enter(ino)
}

// back goes to the directory above, which of the root is the root.
func (w *walker) back() {
	if n := len(w.beyond); n > 0 {
		w.beyond = w.beyond[:n-1]
		return
	}
	w.at = w.at[:max(len(w.at)-1, 1)]
}

// enter goes to the directory ino, or where the symbolic link ino says.
func (w *walker) enter(ino vfs.Ino) error {
	n, err := w.fs.Stat(w.ctx, ino)
	if err != nil {
		return err
	}
	switch n.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		w.at = append(w.at, ino)
		return nil
	case syscall.S_IFLNK:
		return w.follow(ino)
	}
	return syscall.ENOTDIR
}

func (w *walker) follow(link vfs.Ino) error {
	if w.links++; w.links > maxSymlinks {
		return syscall.ELOOP
	}
	target, err := w.fs.Readlink(w.ctx, link)
	if err != nil {
		return err
	}
	if strings.HasPrefix(target, "/") {
		w.at = w.at[:1]
	}
	w.push(target)
	return nil
}

// isDir reports whether e is a directory.
func (t *tree) isDir(ctx context.Context, e vfs.DirEntry) (bool, error) {
	if e.Type != vfs.TypeUnknown {
		return e.Type == vfs.TypeDirectory, nil
	}
	n, err := t.fs.Stat(ctx, e.Ino)
	return n.Mode&syscall.S_IFMT == syscall.S_IFDIR, err
}

// removeAll deletes name in dir and all below it. Nothing there is no error.
func (t *tree) removeAll(ctx context.Context, dir vfs.Ino, name string) error {
	return t.remove(ctx, dir, name, 0)
}

func (t *tree) remove(ctx context.Context, dir vfs.Ino, name string, depth int) error {
	err := t.fs.Remove(ctx, dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, syscall.ENOTEMPTY):
		t.known = nil // it may have been a directory, or a link to one
		return err
	case depth >= maxDepth:
		return fmt.Errorf("%w: directories deeper than %d", ErrUnsafe, maxDepth)
	}
	ino, err := t.fs.Lookup(ctx, dir, name)
	if err != nil {
		return err
	}
	for e, err := range t.fs.ReadDir(ctx, ino) {
		if err == nil {
			err = t.remove(ctx, ino, e.Name, depth+1)
		}
		if err != nil {
			return err
		}
	}
	t.known = nil
	return t.fs.Remove(ctx, dir, name)
}
