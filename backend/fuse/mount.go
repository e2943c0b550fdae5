// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
)

// maxRequest is the largest read or write the kernel sends, in bytes: 256
// pages, the default of fs.fuse.max_pages_limit.
const maxRequest = 1 << 20

// mountFUSE mounts a new FUSE connection on dir and returns its descriptor.
// The library would mount too, but leaves the descriptor open across exec,
// and a child that inherits it keeps a dead device's readers waiting.
func mountFUSE(dir string, readOnly bool) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open /dev/fuse", err)
	}
	var flags uintptr = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRequest)
	if err := unix.Mount("overlaybd", dir, "fuse.overlaybd", flags, data); err != nil {
		_ = unix.Close(fd)
		return -1, &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	return fd, nil
}

// unmount takes away what is mounted on dir; it is no error if nothing is.
func unmount(dir string, flags int) error {
	err := unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: %w", dir, backend.ErrBusy)
	default:
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
}

// clearLeftovers removes from dir the dead mounts, and the empty directories
// under them, of a process that was killed.
func clearLeftovers(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, clearLeftover(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func clearLeftover(dir string) error {
	for mounted(dir) {
		if err := probe(dir); !errors.Is(err, unix.ENOTCONN) {
			return fmt.Errorf("leftover mount %s: still served: %w", dir, errors.Join(err, backend.ErrBusy))
		}
		if err := unmount(dir, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	err := os.Remove(dir)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil // not ours
	}
	return err
}

// mounted reports whether dir is a mount point, without asking what serves it.
func mounted(dir string) bool {
	var st unix.Statx_t
	flags := unix.AT_STATX_DONT_SYNC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	err := unix.Statx(unix.AT_FDCWD, dir, flags, 0, &st)
	return errors.Is(err, unix.ENOTCONN) || err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// probe asks whatever serves the mount dir for an answer. If none comes, the
// asking thread stays behind until the mount is aborted: it cannot be killed.
func probe(dir string) error {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statx_t
		flags := unix.AT_STATX_FORCE_SYNC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
		answer <- unix.Statx(unix.AT_FDCWD, dir, flags, unix.STATX_BASIC_STATS, &st)
	}()
	select {
	case err := <-answer:
		return err
	case <-time.After(time.Second):
		return unix.ETIMEDOUT
	}
}
