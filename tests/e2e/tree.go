// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A Tree is all there is to know of the files below a directory, by path; the
// directory itself is ".".
type Tree map[string]Node

// TimeFormat is that of the times of a Node, which are UTC.
const TimeFormat = "2006-01-02T15:04:05.000000000"

// A Node is one file of a Tree, of whatever kind.
type Node struct {
	Mode   fs.FileMode
	UID    uint32
	GID    uint32
	MTime  string // with nanoseconds
	Device string // major:minor of a device node
	Size   int64  // bytes of a regular file
	Sum    string // SHA-256 of a regular file
	Target string // of a symbolic link
	Links  string // the paths of one inode, where it has several in the tree
	Xattrs map[string]string
}

// ReadTree reads the tree below root, which is not left: mount points show up
// empty.
func ReadTree(root string) (Tree, error) {
	t := make(Tree)
	links := make(map[uint64][]string)
	top, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		n, st, err := readNode(name)
		if err != nil {
			return err
		}
		t[rel] = n
		if !n.Mode.IsDir() && st.Nlink > 1 {
			links[st.Ino] = append(links[st.Ino], rel)
		}
		if n.Mode.IsDir() && st.Dev != top.Sys().(*syscall.Stat_t).Dev { //nolint:errcheck // os.Stat fills it on Linux
			return fs.SkipDir
		}
		return nil
	})
	for _, paths := range links {
		slices.Sort(paths)
		if len(paths) == 1 {
			continue // the others are outside, or hidden
		}
		for _, p := range paths {
			n := t[p]
			n.Links = strings.Join(paths, ", ")
			t[p] = n
		}
	}
	return t, err
}

func readNode(name string) (Node, *syscall.Stat_t, error) {
	info, err := os.Lstat(name)
	if err != nil {
		return Node{}, nil, err
	}
	st := info.Sys().(*syscall.Stat_t) //nolint:errcheck // os.Lstat fills it on Linux
	n := Node{Mode: info.Mode(), UID: st.Uid, GID: st.Gid, MTime: info.ModTime().UTC().Format(TimeFormat)}
	if n.Xattrs, err = readXattrs(name); err != nil {
		return Node{}, nil, err
	}
	switch {
	case n.Mode.IsRegular():
		n.Size = info.Size()
		n.Sum, err = sumFile(name)
	case n.Mode.Type() == fs.ModeSymlink:
		n.Target, err = os.Readlink(name)
	case n.Mode&fs.ModeDevice != 0:
		n.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return n, st, err
}

func sumFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// Diff describes every difference from u, by path, as a cmp.Diff of Nodes.
func (t Tree) Diff(u Tree) []string {
	var diffs []string
	for name, n := range t {
		m, ok := u[name]
		if !ok {
			diffs = append(diffs, fmt.Sprintf("%q: only in the first (%v)", name, n.Mode))
		} else if d := cmp.Diff(n, m); d != "" {
			diffs = append(diffs, fmt.Sprintf("%q:\n%s", name, d))
		}
	}
	for name, m := range u {
		if _, ok := t[name]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q: only in the second (%v)", name, m.Mode))
		}
	}
	slices.Sort(diffs)
	return diffs
}
