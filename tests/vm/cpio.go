// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// An archive writes a cpio archive of the "newc" kind, which the kernel
// unpacks into its first root file system. Parent directories are added as
// needed. The first error is kept and returned by close.
type archive struct {
	w    io.Writer
	seen map[string]bool
	ino  int
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, seen: map[string]bool{".": true}}
}

// file adds a regular file with the given content.
func (a *archive) file(name string, mode fs.FileMode, content []byte) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	a.dir(path.Dir(name))
	if !a.seen[name] {
		a.entry(name, 0o100000|uint32(mode.Perm()), content)
	}
}

// host adds the host's file src under name.
func (a *archive) host(name, src string) {
	b, err := os.ReadFile(src)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.file(name, 0o755, b)
}

// dir adds a directory and those above it.
func (a *archive) dir(name string) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" || a.seen[name] {
		return
	}
	a.dir(path.Dir(name))
	a.entry(name, 0o040755, nil)
}

// close ends the archive.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

// entry writes a header of thirteen 8-digit hex fields after the magic, the
// name, and the content, each padded to 4 bytes.
func (a *archive) entry(name string, mode uint32, content []byte) {
	if a.err != nil {
		return
	}
	a.seen[name] = true
	a.ino++
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	const zeroes = "\x00\x00\x00"
	for _, s := range []string{head, zeroes[:-len(head)&3], string(content), zeroes[:-len(content)&3]} {
		if _, err := io.WriteString(a.w, s); err != nil {
			a.err = err
			return
		}
	}
}
