// SPDX-License-Identifier: Apache-2.0

// Package blockmount puts the file systems of block devices into the mount
// table, and makes them.
//
// A device may be a block special file, or a regular file standing in for one:
// that goes through a loop device, which disappears with the mount, or is
// mounted as it is where the file system can (EROFS). Which file system it is,
// the device's own bytes tell; a label that disagrees only misses its options.
//
// The device's content is a stranger's, and so are the labels: mount options
// are checked against a list. A mount cannot be cancelled, so that a device
// that does not answer blocks its caller until the device's daemon gives up;
// the caller must not be that daemon.
package blockmount

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A Device is what is to be mounted.
type Device struct {
	Path string
	File bool // Path is a regular file

	// Near says that the bytes are on the node. EROFS is then read ahead of who
	// reads file by file, which takes a third of the time. What is far it reads
	// as it is asked to: in one request whatever that is, and nothing else.
	Near bool
}

// Mount mounts dev on the directory target, read-only unless writable. hint
// gives options for the case that its type is the one found on the device.
func Mount(dev Device, target string, hint FS, writable bool) error {
	fs, err := choose(dev, hint, writable)
	if err == nil {
		err = mount(dev, target, fs, writable)
	}
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", dev.Path, target, err)
	}
	return nil
}

// choose returns the file system found on dev with the options to mount it.
func choose(dev Device, hint FS, writable bool) (FS, error) {
	sb, err := readSuperblock(dev.Path)
	if err != nil {
		return FS{}, err
	}
	fs := hint
	if fs.Type != sb.fs {
		fs, _ = byType(sb.fs)
	}
	switch {
	case sb.fs == "":
		return FS{}, errors.New("no known file system on it")
	case sb.dirty && !writable:
		// Mounting it regardless (noload) would show files half changed.
		return FS{}, ErrDirty
	case sb.journal && !writable:
		fs.Mount = append(slices.Clone(fs.Mount), "noload") // nothing to replay: spare reading it
	}
	return fs, fs.check()
}

func mount(dev Device, target string, fs FS, writable bool) error {
	if !dev.File {
		return mountNode(dev.Path, target, fs, writable)
	}
	if fs.Type == "erofs" && !writable {
		err := mountFile(dev, target, fs)
		if !errors.Is(err, unix.ENOTBLK) { // kernels before 6.12 want a block device
			return err
		}
	}
	loop, err := openLoop(dev.Path, !writable)
	if err != nil {
		return err
	}
	defer loop.Close() // from here on the mount holds the device
	return mountNode(loop.Name(), target, fs, writable)
}

// mountFile mounts the EROFS in a file without a loop device, read-only.
func mountFile(dev Device, target string, fs FS) error {
	if dev.Near {
		return mountNode(dev.Path, target, fs, false)
	}
	direct := fs
	direct.Mount = append(slices.Clone(fs.Mount), directIO)
	err := mountNode(dev.Path, target, direct, false)
	if errors.Is(err, unix.EINVAL) { // 6.12 does so unasked, and does not know the option
		return mountNode(dev.Path, target, fs, false)
	}
	return err
}

func mountNode(node, target string, fs FS, writable bool) error {
	flags, data := fs.args(writable)
	driver := fs.Type
	if driver == "ntfs" {
		driver = "ntfs3" // the kernel's read-write one
	}
	if err := unix.Mount(node, target, driver, flags, data); err != nil {
		return &os.SyscallError{Syscall: "mount as " + driver + " (" + data + ")", Err: err}
	}
	return nil
}

// Mounted reports whether target is a mount point. It does not touch what is
// mounted there, which may be dead.
func Mounted(target string) (bool, error) {
	ok, err := mountinfo.Mounted(target)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if dead(err) {
		return true, nil
	}
	return ok, err
}

// dead reports whether err is how a file system without its device answers.
func dead(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ESTALE)
}

// Unmount removes everything mounted on target; it is no error if nothing is.
// A mount in use makes it fail with EBUSY.
func Unmount(target string) error { return unmount(target, unix.UMOUNT_NOFOLLOW) }

// Abandon removes everything mounted on target from sight, though it may be in
// use; what uses it keeps it.
func Abandon(target string) error { return unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH) }

func unmount(target string, flags int) error {
	for {
		err := unix.Unmount(target, flags)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // not a mount point
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}
