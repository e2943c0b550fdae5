// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"errors"
	"fmt"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A directory entry, at multiples of 4 in a block of a directory. Entries
// fill the block; one of inode 0 is free space. The offsets are durable.
//
//	0 u32 inode   4 u16 length   6 u8 length of name   7 u8 type   8 name
const (
	direntHead = 8
	maxName    = 255
)

// A dirent is an entry in the bytes of its block, with the free space behind
// its name.
type dirent []byte

func (d dirent) ino() vfs.Ino   { return vfs.Ino(le.Uint32(d)) }
func (d dirent) name() []byte   { return d[direntHead:][:d[6]] }
func (d dirent) kind() vfs.Type { return vfs.Type(d[7]) }
func (d dirent) isDots() bool {
	return d[6] == 1 && d[8] == '.' || d[6] == 2 && d[8] == '.' && d[9] == '.'
}

// used returns how many bytes of d its name needs.
func (d dirent) used() int {
	if d.ino() == 0 {
		return 0
	}
	return direntSize(int(d[6]))
}

func direntSize(name int) int { return (direntHead + name + 3) &^ 3 }

// put fills d with a name.
func (d dirent) put(name string, ino vfs.Ino, t vfs.Type) {
	le.PutUint32(d, uint32(ino))
	le.PutUint16(d[4:], uint16(len(d)))
	d[6], d[7] = byte(len(name)), byte(t)
	copy(d[direntHead:], name)
}

// errEntry reports an entry that cannot be.
var errEntry = errors.New("bad directory entry")

// direntAt returns the entry at off in the block b.
func direntAt(b []byte, off int) (dirent, error) {
	if len(b)-off < direntHead {
		return nil, fmt.Errorf("%w at %d: no room for it", errEntry, off)
	}
	n := int(le.Uint16(b[off+4:]))
	if n < direntHead || n%4 != 0 || n > len(b)-off {
		return nil, fmt.Errorf("%w at %d: rec_len %d", errEntry, off, n)
	}
	d := dirent(b[off : off+n])
	if d.used() > n {
		return nil, fmt.Errorf("%w at %d: name_len %d in an entry of %d bytes", errEntry, off, d[6], n)
	}
	return d, nil
}

// findName returns where in b the entry of that name is and where the one
// before it is, -1 if there is none.
func findName(b []byte, name string) (off, before int, err error) {
	before = -1
	for off < len(b) {
		d, err := direntAt(b, off)
		if err != nil {
			return 0, 0, err
		}
		if int(d[6]) == len(name) && d.ino() != 0 && string(d.name()) == name {
			return off, before, nil
		}
		before = off
		off += len(d)
	}
	return -1, -1, nil
}

// insertName adds a name to b if there is room.
func insertName(b []byte, name string, ino vfs.Ino, t vfs.Type) (bool, error) {
	need := direntSize(len(name))
	for off := 0; off < len(b); {
		d, err := direntAt(b, off)
		if err != nil {
			return false, err
		}
		used := d.used()
		if len(d)-used >= need {
			le.PutUint16(d[4:], uint16(used))
			d[used:].put(name, ino, t)
			return true, nil
		}
		off += len(d)
	}
	return false, nil
}

// removeName joins the entry at off to the one before it, or leaves it as
// free space.
func removeName(b []byte, off, before int) {
	n := int(le.Uint16(b[off+4:]))
	if before < 0 {
		clear(b[off : off+n])
		le.PutUint16(b[off+4:], uint16(n))
		return
	}
	clear(b[off : off+n])
	le.PutUint16(b[before+4:], uint16(off+n-before))
}

// fillNames makes b hold the entries given, the free space at its end.
func fillNames(b []byte, entries []dirent) {
	clear(b)
	off := 0
	for i, e := range entries {
		n := e.used()
		if i == len(entries)-1 {
			n = len(b) - off
		}
		d := dirent(b[off : off+n])
		copy(d, e[:e.used()])
		le.PutUint16(d[4:], uint16(n))
		off += n
	}
	if len(entries) == 0 {
		le.PutUint16(b[4:], uint16(len(b)))
	}
}
