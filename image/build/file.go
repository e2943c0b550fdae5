// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

const (
	copySize  = 1 << 20
	blockSize = 4 << 10 // what is left out where all of it is zero
)

var zeros [blockSize]byte

// write makes content, which h describes, that of the new file ino.
func (a *applier) write(ino vfs.Ino, h *tar.Header, content io.Reader) error {
	if h.Size == 0 {
		return nil
	}
	if limit := a.tree.fs.Size(); h.Size > limit {
		return fmt.Errorf("file of %d bytes on a disk of %d: %w", h.Size, limit, syscall.EFBIG)
	}
	if a.target && isRun(h) {
		return a.mapBody(ino, content, h.Size)
	}
	return a.store(ino, content, h.Size)
}

// store writes content to the new file ino. Blocks of zeros become holes: that
// keeps those of sparse files, and reads the same for all others.
func (a *applier) store(ino vfs.Ino, content io.Reader, size int64) (err error) {
	w, err := a.tree.fs.Writer(a.ctx, ino, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for {
		if err := a.ctx.Err(); err != nil {
			return err // nothing else asks while a hole goes by
		}
		n, err := fill(content, a.buf)
		if werr := writeSparse(w, a.buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// writeSparse writes p, whole blocks of zeros as holes.
func writeSparse(w vfs.FileWriter, p []byte) error {
	for len(p) > 0 {
		n, zero := run(p)
		if zero {
			if err := w.Skip(int64(n)); err != nil {
				return err
			}
		} else if _, err := w.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// run returns how many bytes p begins with that are blocks of zeros, or are
// not.
func run(p []byte) (n int, zero bool) {
	zero = isZero(p)
	for n < len(p) && isZero(p[n:]) == zero {
		n = min(n+blockSize, len(p))
	}
	return n, zero
}

// isZero reports whether p begins with a block of zeros, or is a shorter one.
func isZero(p []byte) bool {
	p = p[:min(len(p), blockSize)]
	return bytes.Equal(p, zeros[:len(p)])
}

// paxXattr is what PAX records of extended attributes begin with.
const paxXattr = "SCHILY.xattr."

// capability is the attribute that makes a file privileged.
const capability = "security.capability"

// setXattrs adds the extended attributes of h to those of the file ino, of the
// given mode. As containerd does, it leaves out those that the kernel would not
// store on such a file, and trusted ones: no image shall speak to overlayfs.
func (a *applier) setXattrs(ino vfs.Ino, mode uint32, h *tar.Header) error {
	all, err := a.tree.fs.Xattrs(a.ctx, ino)
	if err != nil {
		return err
	}
	before := len(all)
	if h.Typeflag == tar.TypeLink {
		delete(all, capability) // as it goes when the kernel changes the owner
	}
	for record, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(record, paxXattr); ok && storable(name, mode) {
			all[name] = []byte(value)
		}
	}
	if len(all) == 0 && before == 0 {
		return nil
	}
	if acl, ok := all[aclAccess]; ok {
		if all[aclAccess] = chmod(acl, mode); all[aclAccess] == nil {
			delete(all, aclAccess)
		}
	}
	if err := a.tree.fs.SetXattrs(a.ctx, ino, all); err != nil {
		return fmt.Errorf("set %d extended attributes: %w", len(all), err)
	}
	return nil
}

// storable reports whether a file of the mode can have the extended attribute.
func storable(name string, mode uint32) bool {
	kind := mode & syscall.S_IFMT
	switch name {
	case aclAccess:
		return kind != syscall.S_IFLNK
	case aclDefault:
		return kind == syscall.S_IFDIR
	}
	namespace, rest, _ := strings.Cut(name, ".")
	switch namespace {
	case "user":
		return rest != "" && (kind == syscall.S_IFREG || kind == syscall.S_IFDIR)
	case "security":
		return rest != ""
	}
	return false
}
