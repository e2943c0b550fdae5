// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fileName is the one name in a device's directory.
const fileName = "block"

// The node ids are constants, so that a server which takes a live connection
// over from a dead one would know them.
const (
	rootNode  = fuse.FUSE_ROOT_ID
	blockNode = 2
)

// forEver is how long the kernel may believe what it was told of the file.
const forEver = 365 * 24 * time.Hour

// A server answers the kernel's requests about one device. Requests it does
// not know are answered ENOSYS, which the kernel remembers.
type server struct {
	fuse.RawFileSystem
	dev  *Device
	disk *disk
}

func (s *server) String() string { return "overlaybd" }

func (s *server) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != rootNode || name != fileName {
		return fuse.ENOENT
	}
	out.NodeId = blockNode
	out.SetEntryTimeout(forEver)
	out.SetAttrTimeout(forEver)
	s.attr(blockNode, &out.Attr)
	return fuse.OK
}

func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	s.attr(in.NodeId, &out.Attr)
	if in.NodeId == blockNode { // the root's say lets probe find a dead mount
		out.SetTimeout(forEver)
	}
	return fuse.OK
}

func (s *server) attr(node uint64, a *fuse.Attr) {
	a.Ino = node
	a.Nlink = 1
	if node == rootNode {
		a.Mode = unix.S_IFDIR | 0o500
		return
	}
	a.Mode = unix.S_IFREG | 0o400
	if s.disk.w != nil {
		a.Mode |= 0o200
	}
	a.Size = uint64(s.disk.size)
	a.Blocks = a.Size / 512 // stat(2)'s unit, whatever the sector size
	a.Blksize = 4096
}

// SetAttr refuses what would change the file, as a block device does.
func (s *server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok && (in.NodeId != blockNode || size != uint64(s.disk.size)) {
		return fuse.EINVAL
	}
	s.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (s *server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const block = 4096 // the loop driver takes it for the discard granularity
	out.Bsize, out.Frsize = block, block
	out.Blocks = uint64(s.disk.size) / block
	out.Files, out.NameLen = 1, unix.NAME_MAX
	return fuse.OK
}

func (s *server) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	return fuse.OK
}

func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.Offset == 0 {
		out.AddDirEntry(fuse.DirEntry{Name: fileName, Mode: unix.S_IFREG, Ino: blockNode})
	}
	return fuse.OK
}

func (s *server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != blockNode {
		return fuse.Status(unix.EISDIR)
	}
	if s.disk.w == nil && in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	if s.disk.w == nil {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE // nobody changes the content
		return fuse.OK
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}
