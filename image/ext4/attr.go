// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"syscall"
	"time"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// attr returns the attributes of n.
func (n inode) attr() vfs.Attr {
	a := vfs.Attr{
		Mode:  n.mode(),
		UID:   uint32(n.u16(inUID)) | uint32(n.u16(inUIDHi))<<16,
		GID:   uint32(n.u16(inGID)) | uint32(n.u16(inGIDHi))<<16,
		Atime: n.time(inAtime, inAtimeX),
		Mtime: n.time(inMtime, inMtimeX),
		Ctime: n.time(inCtime, inCtimeX),
	}
	if k := n.kind(); k == syscall.S_IFCHR || k == syscall.S_IFBLK {
		a.Major, a.Minor = n.device()
	}
	return a
}

// putAttr stores a, except for device numbers.
func (n inode) putAttr(a vfs.Attr) {
	n.put16(inMode, uint16(a.Mode))
	n.put16(inUID, uint16(a.UID))
	n.put16(inUIDHi, uint16(a.UID>>16))
	n.put16(inGID, uint16(a.GID))
	n.put16(inGIDHi, uint16(a.GID>>16))
	n.putTime(inAtime, inAtimeX, a.Atime)
	n.putTime(inMtime, inMtimeX, a.Mtime)
	n.putTime(inCtime, inCtimeX, a.Ctime)
}

// hasExtra reports whether the 32-bit field at off, beyond the first 128
// bytes, is there.
func (n inode) hasExtra(off int) bool {
	return len(n.raw) > inodeBase && off+4 <= inodeBase+int(n.u16(inExtra))
}

// A time is a signed 32-bit number of seconds and, where there is room, an
// extra word: 2 bits of epochs of 2^32 seconds and 30 bits of nanoseconds.
const (
	minTime      = -1 << 31
	maxTime      = 1<<34 - 1<<31 - 1 // year 2446
	maxTimeShort = 1<<31 - 1
)

func (n inode) time(off, extra int) time.Time {
	sec := int64(int32(n.u32(off)))
	if !n.hasExtra(extra) {
		return time.Unix(sec, 0).UTC()
	}
	x := n.u32(extra)
	return time.Unix(sec+int64(x&3)<<32, int64(min(x>>2, 999_999_999))).UTC()
}

// putTime stores t, or the nearest time that can be stored.
func (n inode) putTime(off, extra int, t time.Time) {
	var sec, nsec int64
	if !t.IsZero() {
		sec, nsec = t.Unix(), int64(t.Nanosecond())
	}
	last := int64(maxTimeShort)
	if n.hasExtra(extra) {
		last = maxTime
	}
	if sec < minTime {
		sec, nsec = minTime, 0
	}
	if sec > last {
		sec, nsec = last, 0
	}
	n.put32(off, uint32(sec))
	if n.hasExtra(extra) {
		epoch := uint32((sec - int64(int32(sec))) >> 32)
		n.put32(extra, epoch&3|uint32(nsec)<<2)
	}
}

// Device numbers are in the first word of i_block where 8 bits each do, else
// in the second as the kernel packs them.
func (n inode) device() (major, minor uint32) {
	if old := n.u32(inBlock); old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	dev := n.u32(inBlock + 4)
	return dev >> 8 & 0xfff, dev&0xff | dev>>12&0xfff00
}

func (n inode) putDevice(major, minor uint32) {
	if major < 256 && minor < 256 {
		n.put32(inBlock, major<<8|minor)
		return
	}
	n.put32(inBlock+4, minor&0xff|major<<8|minor&^0xff<<12)
}
