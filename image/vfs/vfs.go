// SPDX-License-Identifier: Apache-2.0

// Package vfs is what the file systems of block images have in common: how
// their files are named and described, and what it takes to unpack a layer onto
// one. Each format implements [FileSystem] in a package of its own.
package vfs

import (
	"context"
	"io"
	"iter"
	"syscall"
	"time"
)

// An Ino names a file within its file system.
type Ino uint64

// A Type is the type of a file as a directory entry has it.
type Type uint8

// The types, by the numbers that directories of Linux file systems store.
const (
	TypeUnknown Type = iota
	TypeRegular
	TypeDirectory
	TypeCharDevice
	TypeBlockDevice
	TypeFIFO
	TypeSocket
	TypeSymlink
)

// TypeOf returns the type that directories have for a file of this mode,
// TypeUnknown if that has none.
func TypeOf(mode uint32) Type {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return TypeRegular
	case syscall.S_IFDIR:
		return TypeDirectory
	case syscall.S_IFCHR:
		return TypeCharDevice
	case syscall.S_IFBLK:
		return TypeBlockDevice
	case syscall.S_IFIFO:
		return TypeFIFO
	case syscall.S_IFSOCK:
		return TypeSocket
	case syscall.S_IFLNK:
		return TypeSymlink
	}
	return TypeUnknown
}

// An Attr holds the attributes of a file that SetAttr can change, and its
// type. A zero time.Time stands for the epoch.
type Attr struct {
	Mode         uint32 // S_IFMT and permission bits of Unix
	UID, GID     uint32
	Major, Minor uint32 // of device nodes
	Atime        time.Time
	Mtime        time.Time
	Ctime        time.Time
}

// An Inode describes a file.
type Inode struct {
	Ino Ino
	Attr
	Links uint32
	Size  int64 // bytes; of a symbolic link, the length of its target
}

// A DirEntry is a name in a directory.
type DirEntry struct {
	Name string
	Ino  Ino
	Type Type
}

// A FileSystem is one that is open for editing. It is not safe for concurrent
// use. After an operation failed with an error of the device, or because the
// file system is corrupt, that may be half edited: throw the layer away. A full
// one (syscall.ENOSPC) stays sound. Names that are missing are fs.ErrNotExist,
// those that are there fs.ErrExist; other errors wrap the errno that the kernel
// would give.
type FileSystem interface {
	// Root returns the root directory.
	Root() Ino

	// Size returns the size of the device in bytes.
	Size() int64

	Lookup(ctx context.Context, dir Ino, name string) (Ino, error)
	Stat(ctx context.Context, ino Ino) (Inode, error)
	Readlink(ctx context.Context, ino Ino) (string, error)
	Xattrs(ctx context.Context, ino Ino) (map[string][]byte, error)

	// ReadDir yields the entries of a directory but for "." and "..". What is
	// yielded may be removed meanwhile.
	ReadDir(ctx context.Context, dir Ino) iter.Seq2[DirEntry, error]

	// Create makes a file of any type but a symbolic link. A directory is
	// empty, a regular file too.
	Create(ctx context.Context, dir Ino, name string, a Attr) (Ino, error)
	Symlink(ctx context.Context, dir Ino, name, target string, a Attr) (Ino, error)
	Link(ctx context.Context, dir Ino, name string, ino Ino) error

	// Remove removes a name, and the file if that was its last one. Of a
	// directory that is not empty it fails with syscall.ENOTEMPTY.
	Remove(ctx context.Context, dir Ino, name string) error

	// SetAttr sets all attributes but the type.
	SetAttr(ctx context.Context, ino Ino, a Attr) error

	// SetXattrs replaces all extended attributes.
	SetXattrs(ctx context.Context, ino Ino, m map[string][]byte) error

	// Writer empties the regular file ino and returns a writer of its new
	// content, which works under ctx until it is closed. size is how many
	// bytes, those skipped included, are to be expected; 0 means that it is
	// not known.
	Writer(ctx context.Context, ino Ino, size int64) (FileWriter, error)

	// Sync writes everything to the device.
	Sync(ctx context.Context) error
}

// A FileWriter writes the content of a regular file from its beginning to its
// end. It must be closed, and before the file is read, written anew or removed.
type FileWriter interface {
	io.WriteCloser

	// Skip makes the next n bytes of the file read as zeros.
	Skip(n int64) error

	// Map makes the next n bytes of the file those from byte offset at of the
	// layer's target, a multiple of 512 (see [ContentMapper]). It fails with
	// errors.ErrUnsupported where the device has no target, or where the file
	// so far does not end at a block of the file system. n need be no multiple
	// of anything; the bytes of the target behind it, up to the next multiple
	// of 512, must be zeros. Unless n is whole blocks, only Close may follow.
	Map(at, n int64) error
}

// A ContentWriter is a device that wants to know which writes are content of
// files: that is written once, and hardly read, where everything else is written
// again and again. A block may hold content after it held something else, and
// the other way round.
type ContentWriter interface {
	// WriteContent is a WriteAt of content.
	WriteContent(ctx context.Context, p []byte, off int64) (int, error)
}

// A ContentMapper is a device whose layer has a target: another blob, which
// holds the content of files already.
type ContentMapper interface {
	// MapContent makes bytes [off, off+n) of the device those from byte offset
	// at of the target. All three are multiples of 512.
	MapContent(ctx context.Context, off, n, at int64) error
}

// An Extent is a part of a volume, in bytes.
type Extent struct{ Off, Len int64 }

// A Reader is a file system that nobody changes. It is not safe for concurrent
// use. After an error it may be used on.
type Reader interface {
	// Root returns the root directory.
	Root() Ino

	Stat(ctx context.Context, ino Ino) (Inode, error)
	ReadDir(ctx context.Context, dir Ino) iter.Seq2[DirEntry, error]
	Readlink(ctx context.Context, ino Ino) (string, error)

	// ReadAt reads the content of a regular file, holes as zeros.
	ReadAt(ctx context.Context, ino Ino, p []byte, off int64) (int, error)

	// Extents returns where on the volume the blocks lie that hold bytes
	// [off, off+n) of a regular file, without the holes.
	Extents(ctx context.Context, ino Ino, off, n int64) ([]Extent, error)

	// InodeBlock returns the block that holds an inode, without reading it.
	InodeBlock(ino Ino) (Extent, bool)
}
