// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A dirent is an entry of a directory. The name belongs to the cache.
type dirent struct {
	name []byte
	nid  uint64
	kind vfs.Type
}

func (e dirent) isDot() bool { return string(e.name) == "." || string(e.name) == ".." }

// parseDirents parses a block of a directory, the last of which is shorter.
// The names ascend.
func parseDirents(p []byte) ([]dirent, error) {
	if len(p) < direntSize {
		return nil, fmt.Errorf("a block of %d bytes", len(p))
	}
	first := int(le.Uint16(p[deName:]))
	if first%direntSize != 0 || first == 0 || first > len(p) {
		return nil, fmt.Errorf("the first name at %d of %d", first, len(p))
	}
	all := make([]dirent, first/direntSize)
	for i := range all {
		e := p[i*direntSize:]
		at, end := int(le.Uint16(e[deName:])), len(p)
		if i+1 < len(all) {
			end = int(le.Uint16(e[direntSize+deName:]))
		}
		if at < first || end < at || end > len(p) {
			return nil, fmt.Errorf("name %d from %d to %d", i, at, end)
		}
		name := p[at:end]
		if i+1 == len(all) {
			name, _, _ = bytes.Cut(name, []byte{0})
		}
		if !isName(name) {
			return nil, fmt.Errorf("name %d is %.300q", i, name)
		}
		if i > 0 && bytes.Compare(name, all[i-1].name) <= 0 {
			return nil, fmt.Errorf("name %.300q follows %.300q", name, all[i-1].name)
		}
		all[i] = dirent{name: name, nid: le.Uint64(e[deNid:]), kind: fileType(e[deType])}
	}
	return all, nil
}

func checkName(name string) error {
	switch {
	case len(name) > maxName:
		return syscall.ENAMETOOLONG
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	}
	return nil
}

func isName(name []byte) bool {
	return len(name) > 0 && len(name) <= maxName && !bytes.ContainsAny(name, "/\x00")
}

func fileType(t byte) vfs.Type {
	if t > byte(vfs.TypeSymlink) {
		return vfs.TypeUnknown
	}
	return vfs.Type(t)
}

// dirBlock returns the entries in block i of the directory n.
func (m *image) dirBlock(ctx context.Context, n *inode, i int64) ([]dirent, error) {
	off := i << blockBits
	r, err := m.piece(ctx, n, off)
	if err != nil {
		return nil, err
	}
	if r.hole {
		return nil, m.dirCorrupt(n, n.off, errors.New("a hole"))
	}
	p, err := m.read(ctx, r.off, min(blockSize, n.size-off))
	if err != nil {
		return nil, fmt.Errorf("read directory %d: %w", m.sb.nid(n.off), err)
	}
	all, err := parseDirents(p)
	if err != nil {
		return nil, m.dirCorrupt(n, r.off, err)
	}
	return all, nil
}

func (m *image) dirCorrupt(n *inode, off int64, err error) error {
	return corrupt(fmt.Sprintf("directory %d", m.sb.nid(n.off)), off, "entries", "%v", err)
}

// dirents yields the entries of the directory n in their order, but for "."
// and "..".
func (m *image) dirents(ctx context.Context, n *inode) iter.Seq2[dirent, error] {
	return func(yield func(dirent, error) bool) {
		var last []byte
		for i := int64(0); i<<blockBits < n.size; i++ {
			all, err := m.dirBlock(ctx, n, i)
			if err == nil && i > 0 && bytes.Compare(all[0].name, last) <= 0 {
				err = m.dirCorrupt(n, n.off, fmt.Errorf("name %.300q follows %.300q", all[0].name, last))
			}
			if err != nil {
				yield(dirent{}, err)
				return
			}
			for _, e := range all {
				if !e.isDot() && !yield(e, nil) {
					return
				}
			}
			last = append(last[:0], all[len(all)-1].name...)
		}
	}
}

// lookup finds a name in the directory n. It fails with fs.ErrNotExist.
func (m *image) lookup(ctx context.Context, n *inode, name string) (dirent, error) {
	low, high := int64(0), (n.size+blockSize-1)>>blockBits
	for low < high {
		mid := low + (high-low)/2
		all, err := m.dirBlock(ctx, n, mid)
		if err != nil {
			return dirent{}, err
		}
		i, ok := slices.BinarySearchFunc(all, name, func(e dirent, name string) int { return strings.Compare(string(e.name), name) })
		switch {
		case ok:
			return all[i], nil
		case i == 0:
			high = mid
		case i == len(all):
			low = mid + 1
		default:
			return dirent{}, fs.ErrNotExist
		}
	}
	return dirent{}, fs.ErrNotExist
}

// packDirents returns how many of the sorted names go into each block of a
// directory, and the size of it all.
func packDirents(names []string) (counts []int, size int64) {
	used, n := 0, 0
	for _, name := range names {
		need := direntSize + len(name)
		if used+need > blockSize {
			counts = append(counts, n)
			used, n = 0, 0
		}
		used, n = used+need, n+1
	}
	return append(counts, n), int64(len(counts))<<blockBits + int64(used)
}

// appendDirents appends a block with the entries to p.
func appendDirents(p []byte, all []dirent) []byte {
	at := len(all) * direntSize
	for _, e := range all {
		p = le.AppendUint64(p, e.nid)
		p = le.AppendUint16(p, uint16(at))
		p = append(p, byte(e.kind), 0)
		at += len(e.name)
	}
	for _, e := range all {
		p = append(p, e.name...)
	}
	return p
}
