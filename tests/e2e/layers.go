// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/continuity/sysx"
)

// An entry is one tar entry with its content.
type entry struct {
	tar.Header
	body []byte
}

// entries returns the layer of the given entries; what has no time gets epoch.
func entries(all ...entry) Layer {
	return func(w *tar.Writer) error {
		for _, e := range all {
			e.Format = tar.FormatPAX
			e.Size = int64(len(e.body))
			if e.ModTime.IsZero() {
				e.ModTime = epoch
			}
			if err := w.WriteHeader(&e.Header); err != nil {
				return fmt.Errorf("%s: %w", e.Name, err)
			}
			if _, err := w.Write(e.body); err != nil {
				return fmt.Errorf("%s: %w", e.Name, err)
			}
		}
		return nil
	}
}

func file(name string, mode int64, body []byte) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, body: body}
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

func link(typeflag byte, name, target string) entry {
	return entry{Header: tar.Header{Typeflag: typeflag, Name: name, Linkname: target, Mode: 0o777}}
}

func device(typeflag byte, name string, major, minor int64) entry {
	return entry{Header: tar.Header{Typeflag: typeflag, Name: name, Mode: 0o660, Devmajor: major, Devminor: minor}}
}

// whiteout deletes name of the layers below, opaque all that dir name holds.
func whiteout(name string) entry {
	return file(path.Join(path.Dir(name), ".wh."+path.Base(name)), 0, nil)
}

func opaque(name string) entry { return file(name+"/.wh..wh..opq", 0, nil) }

func (e entry) owned(uid, gid int) entry {
	e.Uid, e.Gid = uid, gid
	return e
}

func (e entry) at(t time.Time) entry {
	e.ModTime = t
	return e
}

func (e entry) with(xattr, value string) entry {
	e.PAXRecords = map[string]string{"SCHILY.xattr." + xattr: value}
	return e
}

// noise returns n bytes that do not compress, the same for one seed.
func noise(seed byte, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p) // it never fails
	return p
}

// capNetBind is security.capability with cap_net_bind_service=ep, revision 2.
const capNetBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// tree is what the layers odd, removed and moved work on.
var tree = entries(
	dir("tree", 0o755),
	dir("tree/keep", 0o755), file("tree/keep/a", 0o644, []byte("a")), file("tree/keep/b", 0o644, []byte("b")),
	dir("tree/drop", 0o755), file("tree/drop/a", 0o644, noise(1, 5000)), file("tree/drop/b", 0o644, noise(2, 70000)),
	dir("tree/clear", 0o755), dir("tree/clear/sub", 0o755), file("tree/clear/sub/x", 0o644, []byte("x")), file("tree/clear/y", 0o644, []byte("y")),
	file("tree/file-to-dir", 0o644, []byte("file")),
	dir("tree/dir-to-file", 0o755), file("tree/dir-to-file/x", 0o644, []byte("x")),
	file("tree/file-to-link", 0o644, []byte("file")),
	link(tar.TypeSymlink, "tree/link-to-file", "keep/a"),
	file("tree/linked-1", 0o644, noise(3, 9000)),
	link(tar.TypeLink, "tree/linked-2", "tree/linked-1"),
	link(tar.TypeLink, "tree/keep/linked-3", "tree/linked-1"),
	file("tree/chmod", 0o644, noise(4, 3000)),
	file("tree/grows", 0o644, noise(5, 100_000)),
	file("tree/shrinks", 0o644, noise(6, 100_000)),
)

// odd holds every kind of entry, name and attribute a layer may have.
var odd = entries(
	dir("odd", 0o1777).at(epoch.Add(123456789*time.Nanosecond)),
	file("odd/setuid", 0o4755, []byte("#!/bin/sh\n")),
	file("odd/setgid", 0o2755, []byte("#!/bin/sh\n")).owned(0, 42),
	dir("odd/setgid-dir", 0o2775).owned(1000, 1000),
	file("odd/no-mode", 0, []byte("secret")),
	file("odd/empty", 0o644, nil),
	file("odd/high-owner", 0o600, []byte("x")).owned(3_000_000, 4_000_000),
	file("odd/capable", 0o755, []byte("#!/bin/sh\n")).with("security.capability", capNetBind),
	file("odd/user-xattr", 0o644, []byte("x")).with("user.comment", "two words and a \x01 byte"),
	file("odd/large-xattr", 0o644, []byte("x")).with("user.large", strings.Repeat("0123456789", 150)),
	dir("odd/dir-xattr", 0o755).with("trusted.note", "on a directory"),
	device(tar.TypeChar, "odd/null", 1, 3),
	device(tar.TypeBlock, "odd/disk", 259, 300),
	device(tar.TypeFifo, "odd/fifo", 0, 0),
	link(tar.TypeSymlink, "odd/dangling", "/no/../such/./file/"),
	link(tar.TypeSymlink, "odd/long-link", strings.Repeat("../", 400)+"x"),
	file("odd/"+strings.Repeat("n", 255), 0o644, []byte("long name")),
	file("odd/"+strings.Repeat("deep/", 60)+"file", 0o644, []byte("long path")),
	file("odd/ünïcode 名前", 0o644, []byte("unicode")),
	file("odd/new\nline\\and\ttab", 0o644, []byte("control")),
	file("odd/before-1970", 0o644, []byte("old")).at(time.Date(1955, 11, 5, 6, 15, 0, 0, time.UTC)),
	file("odd/after-2038", 0o644, []byte("new")).at(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)),
	file("odd/nanoseconds", 0o644, []byte("now")).at(epoch.Add(987654321)),
	file("odd/zeroes", 0o644, make([]byte, 1<<20)),
	file("odd/noise", 0o644, noise(7, 2<<20+123)),
	file("odd/linked-1", 0o644, noise(8, 4097)),
	link(tar.TypeLink, "odd/linked-2", "odd/linked-1"),
	link(tar.TypeLink, "odd/setgid-dir/linked-3", "odd/linked-1"),
	link(tar.TypeSymlink, "odd/symlink", "linked-1"),
	link(tar.TypeLink, "odd/linked-symlink", "odd/symlink"),
)

// removed deletes and replaces what tree has made.
var removed = entries(
	whiteout("tree/drop"), whiteout("tree/keep/b"), whiteout("tree/linked-1"), whiteout("tree/never-was"),
	opaque("tree/clear"), file("tree/clear/z", 0o644, []byte("z")),
	dir("tree/file-to-dir", 0o700), file("tree/file-to-dir/x", 0o644, []byte("x")),
	file("tree/dir-to-file", 0o600, []byte("now a file")),
	link(tar.TypeSymlink, "tree/file-to-link", "keep/a"),
	file("tree/link-to-file", 0o644, []byte("now a file")),
	file("tree/chmod", 0o4711, noise(4, 3000)).owned(1, 2),
	file("tree/grows", 0o644, noise(9, 300_000)),
	file("tree/shrinks", 0o644, []byte("small")),
)

// readded puts something new where removed has deleted.
var readded = entries(
	dir("tree/drop", 0o711), file("tree/drop/a", 0o644, []byte("back again")),
	dir("tree/clear/sub", 0o755), file("tree/clear/sub/w", 0o644, []byte("w")),
)

// nothing is the layer that instructions without effect leave behind.
var nothing = entries()

// directory returns the layer that holds the tree below root, in the order of
// names, without what skip says.
func directory(root string, skip func(name string) bool) Layer {
	return func(w *tar.Writer) error {
		links := make(map[uint64]string)
		return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err != nil || name == root {
				return err
			}
			rel := strings.TrimPrefix(name, root+"/")
			if skip(rel) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			return errors.Join(writeEntry(w, name, rel, links))
		})
	}
}

func writeEntry(w *tar.Writer, name, rel string, links map[uint64]string) error {
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	h, err := header(info, name, rel)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && st.Nlink > 1 && !info.IsDir() {
		if first, seen := links[st.Ino]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		}
		links[st.Ino] = rel
	}
	if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

func header(info fs.FileInfo, name, rel string) (*tar.Header, error) {
	target := ""
	if info.Mode().Type() == fs.ModeSymlink {
		var err error
		if target, err = os.Readlink(name); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	h.Name, h.Format = rel, tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname, h.AccessTime, h.ChangeTime = "", "", time.Time{}, time.Time{}
	attrs, err := readXattrs(name)
	if err != nil {
		return nil, err
	}
	h.PAXRecords = make(map[string]string)
	for k, v := range attrs {
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	return h, nil
}

// readXattrs returns the extended attributes of name itself.
func readXattrs(name string) (map[string]string, error) {
	keys, err := sysx.LListxattr(name)
	if err != nil {
		return nil, fmt.Errorf("list xattrs of %s: %w", name, err)
	}
	attrs := make(map[string]string)
	for _, k := range keys {
		v, err := sysx.LGetxattr(name, k)
		if err != nil {
			return nil, fmt.Errorf("read xattr %s of %s: %w", k, name, err)
		}
		attrs[k] = string(v)
	}
	return attrs, nil
}
