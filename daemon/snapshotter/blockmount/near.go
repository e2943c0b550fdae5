// SPDX-License-Identifier: Apache-2.0

package blockmount

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// directIO has EROFS read its file past that one's page cache.
const directIO = "directio"

// Settle tells the file system on target that its device is near by now; see
// [Device]. It does nothing for those that would not read otherwise.
func Settle(target string) error {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil || len(infos) == 0 || infos[0].FSType != "erofs" {
		return err
	}
	options := strings.Split(infos[0].VFSOptions, ",")
	if !slices.Contains(options, directIO) {
		return nil
	}
	options = slices.DeleteFunc(options, func(o string) bool { return o == directIO || o == "ro" })
	if err := reconfigure(target, unix.EROFS_SUPER_MAGIC_V1, options); err != nil {
		return fmt.Errorf("mount %s without %s: %w", target, directIO, err)
	}
	return nil
}

// reconfigure gives the file system on target, which must be of the type that
// magic stands for, these options and no others. What else was said of the
// mount stays.
func reconfigure(target string, magic int64, options []string) error {
	root, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(root, &st); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	if st.Type != magic {
		return errors.New("another file system is mounted there by now")
	}
	fc, err := unix.Fspick(root, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fspick", err)
	}
	defer func() { _ = unix.Close(fc) }()
	for _, o := range options {
		if key, value, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fc, key, value)
		} else {
			err = unix.FsconfigSetFlag(fc, o)
		}
		if err != nil {
			return &os.SyscallError{Syscall: "fsconfig " + o, Err: err}
		}
	}
	return os.NewSyscallError("fsconfig", unix.FsconfigReconfigure(fc))
}
