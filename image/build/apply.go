// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// ErrUnsafe reports a layer that asks for what no layer may do.
var ErrUnsafe = errors.New("unsafe layer")

// Apply unpacks a layer's tar over what fsys holds, as containerd unpacks it
// over a directory: whiteouts delete, a directory over a directory takes its
// attributes, anything else replaces what is there. It does not sync fsys.
func Apply(ctx context.Context, fsys vfs.FileSystem, layer io.Reader) error {
	return newApplier(ctx, fsys, layer).run()
}

// An applier unpacks one layer.
type applier struct {
	ctx    context.Context // of the whole layer
	tree   tree
	tape   *tape
	target bool // content stays in the tar
	buf    []byte
}

func newApplier(ctx context.Context, fsys vfs.FileSystem, layer io.Reader) *applier {
	return &applier{ctx: ctx, tree: tree{fs: fsys, made: newMade()}, tape: &tape{r: layer}, buf: make([]byte, copySize)}
}

func (a *applier) run() error {
	r := tar.NewReader(a.tape)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar entry %d: %w", n, err)
		}
		if err := a.entry(h, r); err != nil {
			return fmt.Errorf("apply tar entry %d, %.200q: %w", n, h.Name, err)
		}
	}
}

const (
	whiteoutPrefix = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
)

func (a *applier) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if strings.ContainsRune(h.Name, 0) {
		return fmt.Errorf("%w: a zero byte in its name", ErrUnsafe)
	}
	dir, base := path.Split(path.Clean(h.Name))
	if base == "." || base == ".." || base == "" {
		return nil // the root, of which layers do not decide
	}
	parent, err := a.tree.mkdirAll(a.ctx, dir)
	if err != nil {
		return err
	}
	switch {
	case base == opaqueWhiteout:
		return a.hide(parent)
	case strings.HasPrefix(base, whiteoutPrefix):
		return a.whiteout(parent, base[len(whiteoutPrefix):])
	}
	return a.put(parent, base, h, content)
}

// whiteout deletes name, if it is there.
func (a *applier) whiteout(dir vfs.Ino, name string) error {
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: a whiteout of no name", ErrUnsafe)
	}
	return a.tree.removeAll(a.ctx, dir, name)
}

// hide deletes what the layers below have in dir. That is done once: parents
// that no entry names are not remembered, so doing it again would take them for
// the layers' below, and all in them.
func (a *applier) hide(dir vfs.Ino) error {
	if a.tree.made.opaque.has(dir) {
		return nil
	}
	a.tree.made.opaque.add(dir)
	return a.clear(dir, 0)
}

// clear deletes what lies in dir and was not made by this layer.
func (a *applier) clear(dir vfs.Ino, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: directories deeper than %d", ErrUnsafe, maxDepth)
	}
	for e, err := range a.tree.fs.ReadDir(a.ctx, dir) {
		if err == nil {
			err = a.clearEntry(dir, e, depth)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) clearEntry(dir vfs.Ino, e vfs.DirEntry, depth int) error {
	if !a.tree.made.has(dir, e) {
		return a.tree.removeAll(a.ctx, dir, e.Name)
	}
	isDir, err := a.tree.isDir(a.ctx, e)
	if err != nil || !isDir {
		return err
	}
	return a.clear(e.Ino, depth+1)
}

// put makes the file of h under name.
func (a *applier) put(dir vfs.Ino, name string, h *tar.Header, content io.Reader) error {
	attr, err := attributes(h)
	if err != nil {
		return err
	}
	if attr.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return a.directory(dir, name, attr, h)
	}
	if err := a.tree.removeAll(a.ctx, dir, name); err != nil {
		return err
	}
	var ino vfs.Ino
	switch h.Typeflag {
	case tar.TypeLink:
		return a.link(dir, name, attr, h)
	case tar.TypeSymlink:
		ino, err = a.tree.fs.Symlink(a.ctx, dir, name, h.Linkname, attr)
	default:
		ino, err = a.tree.fs.Create(a.ctx, dir, name, attr)
	}
	if err != nil {
		return err
	}
	a.tree.made.add(ino)
	if attr.Mode&syscall.S_IFMT == syscall.S_IFREG {
		if err := a.write(ino, h, content); err != nil {
			return err
		}
	}
	return a.setXattrs(ino, attr.Mode, h)
}

// directory makes a directory, or gives the one that is there its attributes.
func (a *applier) directory(dir vfs.Ino, name string, attr vfs.Attr, h *tar.Header) error {
	ino, err := a.tree.fs.Lookup(a.ctx, dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		n, err := a.tree.fs.Stat(a.ctx, ino)
		if err != nil {
			return err
		}
		if n.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			a.tree.made.files.add(ino)
			return errors.Join(a.tree.fs.SetAttr(a.ctx, ino, attr), a.setXattrs(ino, attr.Mode, h))
		}
		if err := a.tree.removeAll(a.ctx, dir, name); err != nil {
			return err
		}
	}
	if ino, err = a.tree.fs.Create(a.ctx, dir, name, attr); err != nil {
		return err
	}
	a.tree.made.add(ino)
	return a.setXattrs(ino, attr.Mode, h)
}

// link makes a hard link. As tar has it, the link's header says again what the
// attributes are.
func (a *applier) link(dir vfs.Ino, name string, attr vfs.Attr, h *tar.Header) error {
	target, err := a.tree.find(a.ctx, h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
	}
	if err := a.tree.fs.Link(a.ctx, dir, name, target); err != nil {
		return err
	}
	if err := a.tree.made.addLink(dir, name, target); err != nil {
		return err
	}
	n, err := a.tree.fs.Stat(a.ctx, target)
	if err != nil {
		return err
	}
	attr.Mode = attr.Mode&^syscall.S_IFMT | n.Mode&syscall.S_IFMT
	if attr.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		attr.Mode = n.Mode // a link has no permissions of its own
	}
	if err := a.tree.fs.SetAttr(a.ctx, target, attr); err != nil {
		return err
	}
	return a.setXattrs(target, attr.Mode, h)
}

// attributes returns the attributes that h states.
func attributes(h *tar.Header) (vfs.Attr, error) {
	kind, ok := kinds[h.Typeflag]
	if !ok {
		return vfs.Attr{}, fmt.Errorf("tar entry of type %q: %w", h.Typeflag, errors.ErrUnsupported)
	}
	a := vfs.Attr{Mode: kind | uint32(h.Mode)&0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid)}
	if kind == syscall.S_IFLNK {
		a.Mode = kind | 0o777 // the kernel knows no other
	}
	if int(a.UID) != h.Uid || int(a.GID) != h.Gid {
		return a, fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, errors.ErrUnsupported)
	}
	if kind == syscall.S_IFCHR || kind == syscall.S_IFBLK {
		a.Major, a.Minor = uint32(h.Devmajor), uint32(h.Devminor)
		if int64(a.Major) != h.Devmajor || int64(a.Minor) != h.Devminor {
			return a, fmt.Errorf("device %d:%d: %w", h.Devmajor, h.Devminor, errors.ErrUnsupported)
		}
	}
	a.Mtime = bounded(h.ModTime)
	a.Atime, a.Ctime = a.Mtime, a.Mtime
	if t := bounded(h.AccessTime); t.After(a.Atime) {
		a.Atime = t
	}
	return a, nil
}

var kinds = map[byte]uint32{
	tar.TypeReg:       syscall.S_IFREG,
	tar.TypeCont:      syscall.S_IFREG,
	tar.TypeGNUSparse: syscall.S_IFREG,
	tar.TypeLink:      syscall.S_IFREG, // of its target
	tar.TypeSymlink:   syscall.S_IFLNK,
	tar.TypeDir:       syscall.S_IFDIR,
	tar.TypeChar:      syscall.S_IFCHR,
	tar.TypeBlock:     syscall.S_IFBLK,
	tar.TypeFifo:      syscall.S_IFIFO,
}

// lastTime is the last one that fits into nanoseconds since 1970.
var lastTime = time.Unix(0, 1<<63-1)

// bounded returns t, or 1970 for what lies before it or too far behind, as
// containerd does.
func bounded(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) || t.After(lastTime) {
		return time.Unix(0, 0)
	}
	return t
}
