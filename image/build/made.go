// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"hash/maphash"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// maxLinks bounds how many hard links to files of lower layers a layer may
// make. They are the only names that have to be remembered one by one.
const maxLinks = 1 << 20

// made knows the names that the entries of a layer stand for, which an opaque
// directory keeps. Its size is bounded by the number of inodes, a bit each, and
// not by that of the entries.
type made struct {
	// files are those that the layer made, or directories that it named: a
	// directory has one name, and whatever names a file of this layer's is of
	// this layer, too. Deleted files stay in the sets until another file takes
	// their inode.
	files inoSet

	// links are the layer's names of other files. seed keeps layers from
	// choosing names that look alike.
	links map[place]struct{}
	seed  maphash.Seed

	// opaque are directories that hold nothing but what the layer made.
	opaque inoSet
}

// A place is a name in a directory; names are remembered by their hash.
type place struct {
	dir  vfs.Ino
	name uint64
}

func newMade() made {
	return made{links: make(map[place]struct{}), seed: maphash.MakeSeed()}
}

func (m *made) place(dir vfs.Ino, name string) place {
	return place{dir, maphash.String(m.seed, name)}
}

// add notes a new file with a name that an entry gave it.
func (m *made) add(ino vfs.Ino) {
	m.files.add(ino)
	m.opaque.remove(ino)
}

// addImplicit notes a new directory with a name that led to another file.
func (m *made) addImplicit(dir vfs.Ino, name string, ino vfs.Ino) {
	m.files.remove(ino)
	m.opaque.remove(ino)
	delete(m.links, m.place(dir, name))
}

// addLink notes a hard link to ino.
func (m *made) addLink(dir vfs.Ino, name string, ino vfs.Ino) error {
	if m.files.has(ino) {
		return nil
	}
	if len(m.links) >= maxLinks {
		return fmt.Errorf("%w: more than %d hard links to files of lower layers", ErrUnsafe, maxLinks)
	}
	m.links[m.place(dir, name)] = struct{}{}
	return nil
}

// has reports whether the layer named e in dir.
func (m *made) has(dir vfs.Ino, e vfs.DirEntry) bool {
	if m.files.has(e.Ino) {
		return true
	}
	_, ok := m.links[m.place(dir, e.Name)]
	return ok
}

// An inoSet is a set of inodes, a bit each. File systems hand their numbers out
// from the lowest.
type inoSet []uint64

func (s *inoSet) add(ino vfs.Ino) {
	word := int(ino / 64)
	if word >= len(*s) {
		*s = append(*s, make([]uint64, word+1-len(*s))...)
	}
	(*s)[word] |= 1 << (ino % 64)
}

func (s inoSet) remove(ino vfs.Ino) {
	if s.has(ino) {
		s[ino/64] &^= 1 << (ino % 64)
	}
}

func (s inoSet) has(ino vfs.Ino) bool {
	word := int(ino / 64)
	return word < len(s) && s[word]&(1<<(ino%64)) != 0
}
