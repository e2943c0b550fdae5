// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A node is a file of the model that a file system is compared with.
type node struct {
	attr   vfs.Attr
	links  int
	data   []byte
	target string
	xattrs map[string][]byte
	names  map[string]*node // of a directory
}

func newDir(a vfs.Attr) *node { return &node{attr: a, links: 2, names: map[string]*node{}} }

func (n *node) isDir() bool { return n.attr.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// describe lists what is below n, a line for every path.
func (n *node) describe(name string) []string {
	size := int64(len(n.data) + len(n.target))
	lines := []string{line(name, n.attr, n.links, size, body(n.data, n.target), n.xattrs)}
	for _, k := range slices.Sorted(maps.Keys(n.names)) {
		lines = append(lines, n.names[k].describe(path.Join(name, k))...)
	}
	return lines
}

// line describes a file. The size of a directory is left out.
func line(name string, a vfs.Attr, links int, size int64, content string, xattrs map[string][]byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %o %d:%d links %d", name, a.Mode, a.UID, a.GID, links)
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFCHR, syscall.S_IFBLK:
		fmt.Fprintf(&b, " dev %d:%d", a.Major, a.Minor)
	case syscall.S_IFREG, syscall.S_IFLNK:
		fmt.Fprintf(&b, " size %d %s", size, content)
	}
	fmt.Fprintf(&b, " m %d.%09d", a.Mtime.Unix(), a.Mtime.Nanosecond())
	for _, k := range slices.Sorted(maps.Keys(xattrs)) {
		fmt.Fprintf(&b, " %s=%x", k, xattrs[k])
	}
	return b.String()
}

func body(data []byte, target string) string {
	if target != "" {
		return "-> " + target
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))[:16]
}

// A tree is an FS or a Reader.
type tree interface {
	Stat(ctx context.Context, ino vfs.Ino) (vfs.Inode, error)
	Xattrs(ctx context.Context, ino vfs.Ino) (map[string][]byte, error)
	Lookup(ctx context.Context, dir vfs.Ino, name string) (vfs.Ino, error)
	ReadDir(ctx context.Context, dir vfs.Ino) iter.Seq2[vfs.DirEntry, error]
	Readlink(ctx context.Context, ino vfs.Ino) (string, error)
}

// describeFS lists what f has below ino, as describe does. An FS cannot tell
// what is in a file.
func describeFS(ctx context.Context, f tree, ino vfs.Ino, name string) ([]string, error) {
	st, err := f.Stat(ctx, ino)
	if err != nil {
		return nil, err
	}
	xattrs, err := f.Xattrs(ctx, ino)
	if err != nil {
		return nil, err
	}
	text, err := contentFS(ctx, f, st)
	if err != nil {
		return nil, err
	}
	lines := []string{line(name, st.Attr, int(st.Links), st.Size, text, xattrs)}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return lines, nil
	}
	below := map[string]vfs.Ino{}
	for e, err := range f.ReadDir(ctx, ino) {
		if err != nil {
			return nil, err
		}
		if got, err := f.Lookup(ctx, ino, e.Name); got != e.Ino || err != nil {
			return nil, fmt.Errorf("%s/%q is inode %d in the directory, %d, %w by name", name, e.Name, e.Ino, got, err)
		}
		below[e.Name] = e.Ino
	}
	for _, k := range slices.Sorted(maps.Keys(below)) {
		more, err := describeFS(ctx, f, below[k], path.Join(name, k))
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	return lines, nil
}

func contentFS(ctx context.Context, f tree, st vfs.Inode) (string, error) {
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := f.Readlink(ctx, st.Ino)
		return body(nil, target), err
	case syscall.S_IFREG:
		r, ok := f.(interface {
			ReadAt(ctx context.Context, ino vfs.Ino, p []byte, off int64) (int, error)
		})
		if !ok {
			return "?", nil
		}
		data := make([]byte, st.Size)
		n, err := r.ReadAt(ctx, st.Ino, data, 0)
		if n == len(data) && errors.Is(err, io.EOF) {
			err = nil
		}
		return body(data, ""), err
	}
	return "", nil
}

// A pair is a file system and its model. Every method does the same to both.
type pair struct {
	ctx  context.Context
	fs   *erofs.FS
	root *node

	// target takes content that the layer's target is to have, and says where
	// it does. Nil if there is none.
	target func(p []byte) (at int64)
}

// newPair returns a pair on the empty file system f.
func newPair(ctx context.Context, f *erofs.FS) (*pair, error) {
	a := attr(syscall.S_IFDIR | 0o755)
	if err := f.SetAttr(ctx, f.Root(), a); err != nil {
		return nil, err
	}
	return &pair{ctx: ctx, fs: f, root: newDir(a)}, nil
}

// at returns the node and the inode of a path.
func (p *pair) at(name string) (*node, vfs.Ino, error) {
	n, ino := p.root, p.fs.Root()
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if part == "" {
			continue
		}
		var err error
		if ino, err = p.fs.Lookup(p.ctx, ino, part); err != nil {
			return nil, 0, err
		}
		if n = n.names[part]; n == nil {
			return nil, 0, fmt.Errorf("%s is not in the model", name)
		}
	}
	return n, ino, nil
}

func (p *pair) create(name string, a vfs.Attr) error {
	return p.add(name, a, func(dir vfs.Ino, base string) (vfs.Ino, error) { return p.fs.Create(p.ctx, dir, base, a) }, "")
}

func (p *pair) symlink(name, target string, a vfs.Attr) error {
	a.Mode = a.Mode&^syscall.S_IFMT | syscall.S_IFLNK
	return p.add(name, a, func(dir vfs.Ino, base string) (vfs.Ino, error) {
		return p.fs.Symlink(p.ctx, dir, base, target, a)
	}, target)
}

func (p *pair) add(name string, a vfs.Attr, create func(vfs.Ino, string) (vfs.Ino, error), target string) error {
	parent, dir, err := p.at(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	ino, err := create(dir, base)
	if parent.names[base] != nil {
		return wantError(err, fs.ErrExist)
	}
	if err != nil {
		return err
	}
	n := &node{attr: a, links: 1, target: target}
	if n.isDir() {
		n = newDir(a)
		parent.links++
	}
	parent.names[base] = n
	if st, err := p.fs.Stat(p.ctx, ino); err != nil || st.Mode != a.Mode {
		return fmt.Errorf("%s has mode %o, %w", name, st.Mode, err)
	}
	return nil
}

func wantError(err, want error) error {
	if errors.Is(err, want) {
		return nil
	}
	return fmt.Errorf("got %w, want %w", err, want)
}

// write sets the content of a file to parts, of which every second is a hole.
func (p *pair) write(name string, hint int64, parts ...[]byte) error {
	n, ino, err := p.at(name)
	if err != nil {
		return err
	}
	w, err := p.fs.Writer(p.ctx, ino, hint)
	if err != nil {
		return err
	}
	for i, part := range parts {
		if i == len(parts)-1 && p.target != nil {
			err = w.Map(p.target(part), int64(len(part)))
			if errors.Is(err, errors.ErrUnsupported) {
				_, err = w.Write(part)
			}
		} else if i%2 == 0 {
			_, err = w.Write(part)
		} else {
			err = w.Skip(int64(len(part)))
		}
		if err != nil {
			return errors.Join(err, w.Close())
		}
	}
	n.data = bytes.Join(parts, nil)
	return w.Close()
}

func (p *pair) link(name, old string) error {
	n, ino, err := p.at(old)
	if err != nil {
		return err
	}
	parent, dir, err := p.at(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	err = p.fs.Link(p.ctx, dir, base, ino)
	switch {
	case parent.names[base] != nil:
		return wantError(err, fs.ErrExist)
	case n.isDir():
		return wantError(err, syscall.EPERM)
	case err != nil:
		return err
	}
	parent.names[base] = n
	n.links++
	return nil
}

func (p *pair) remove(name string) error {
	parent, dir, err := p.at(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	n := parent.names[base]
	err = p.fs.Remove(p.ctx, dir, base)
	switch {
	case n == nil:
		return wantError(err, fs.ErrNotExist)
	case len(n.names) > 0:
		return wantError(err, syscall.ENOTEMPTY)
	case err != nil:
		return err
	}
	delete(parent.names, base)
	n.links--
	if n.isDir() {
		parent.links--
	}
	return nil
}

func (p *pair) setAttr(name string, a vfs.Attr) error {
	n, ino, err := p.at(name)
	if err != nil {
		return err
	}
	a.Mode = a.Mode&^syscall.S_IFMT | n.attr.Mode&syscall.S_IFMT
	a.Major, a.Minor = n.attr.Major, n.attr.Minor
	n.attr = a
	return p.fs.SetAttr(p.ctx, ino, a)
}

func (p *pair) setXattrs(name string, m map[string][]byte) error {
	n, ino, err := p.at(name)
	if err != nil {
		return err
	}
	n.xattrs = m
	return p.fs.SetXattrs(p.ctx, ino, m)
}

// check compares the file system with its model.
func (p *pair) check() error {
	got, err := describeFS(p.ctx, p.fs, p.fs.Root(), "/")
	if err != nil {
		return err
	}
	want := p.root.describe("/")
	for i, line := range want {
		want[i] = sum.ReplaceAllString(line, "$1?")
	}
	return sameLines(got, want)
}

// links matches the count of links.
var links = regexp.MustCompile(`links [0-9]+`)

// sum matches what stands for the content of a regular file.
var sum = regexp.MustCompile(`( size [0-9]+ )[0-9a-f]{16}`)

// checkRead compares what is on v with the model.
func (p *pair) checkRead(v backend.Volume) error {
	r, err := erofs.NewReader(p.ctx, v)
	if err != nil {
		return err
	}
	got, err := describeFS(p.ctx, r, r.Root(), "/")
	if err != nil {
		return err
	}
	return sameLines(got, p.root.describe("/"))
}

func sameLines(got, want []string) error {
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			return fmt.Errorf("line %d of %d:\n got %s\nwant %s", i, len(want), g, w)
		}
	}
	return nil
}
