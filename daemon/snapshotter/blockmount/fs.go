// SPDX-License-Identifier: Apache-2.0

package blockmount

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// An FS says how a file system is mounted and made. The zero value leaves
// both to what is found on the device.
type FS struct {
	Type  string   // "ext4"
	Mount []string // mount options
	Mkfs  []string // arguments of mkfs
}

// kinds holds the defaults per file system. The mkfs arguments are the
// reference's, so that a device made here is laid out as one made there; but
// for xfs, whose "size=4m" log and "crc=0" today's mkfs and kernels refuse.
var kinds = []FS{
	{
		Type: "ext4", Mount: []string{"discard"},
		Mkfs: []string{"-O", "^has_journal,sparse_super,flex_bg", "-G", "1", "-E", "discard", "-F"},
	},
	{Type: "xfs", Mount: []string{"nouuid", "discard"}, Mkfs: []string{"-f"}},
	{Type: "f2fs", Mkfs: []string{"-S", "-w", "4096"}},
	{Type: "ntfs", Mkfs: []string{"-F", "-f"}},
	{Type: "btrfs"},
	{Type: "erofs"},
}

// maxFS bounds the text of an FS in bytes: mount(2) takes options of one page.
const maxFS = 4096

// ParseFS reads "type[;mount options[;mkfs arguments]]", the value of a
// blob-fs-type label. A part left out takes its default; an empty one is empty.
func ParseFS(s string) (FS, error) {
	name, rest, hasMount := strings.Cut(s, ";")
	mnt, mkfs, hasMkfs := strings.Cut(rest, ";")
	fs, ok := byType(name)
	switch {
	case len(s) > maxFS:
		return FS{}, fmt.Errorf("file system of %d bytes, at most %d are allowed", len(s), maxFS)
	case !ok:
		return FS{}, fmt.Errorf("file system %q is not known", name)
	case strings.Contains(mkfs, ";") || strings.Contains(s, "\x00"):
		return FS{}, fmt.Errorf("file system %q is not of the form type;mount;mkfs", s)
	}
	if hasMount {
		fs.Mount = strings.FieldsFunc(mnt, func(r rune) bool { return r == ',' })
	}
	if hasMkfs {
		fs.Mkfs = strings.Fields(mkfs)
	}
	return fs, fs.check()
}

func byType(name string) (FS, bool) {
	i := slices.IndexFunc(kinds, func(fs FS) bool { return fs.Type == name })
	if i < 0 {
		return FS{}, false
	}
	return kinds[i], true
}

// flagOptions are mount options that mount(2) takes as a flag.
var flagOptions = map[string]uintptr{
	"ro":          unix.MS_RDONLY,
	"rw":          0,
	"noatime":     unix.MS_NOATIME,
	"nodiratime":  unix.MS_NODIRATIME,
	"relatime":    unix.MS_RELATIME,
	"strictatime": unix.MS_STRICTATIME,
	"lazytime":    unix.MS_LAZYTIME,
	"sync":        unix.MS_SYNCHRONOUS,
	"dirsync":     unix.MS_DIRSYNC,
}

// dataOptions are the others that a label may ask for. Labels come with images:
// anything not listed, such as errors=panic, would be a stranger's order to the
// host's kernel.
var dataOptions = []string{
	"discard", "nodiscard", "nouuid", "norecovery", "noload", "acl", "noacl",
	"user_xattr", "nouser_xattr", "inode64", "directio", "barrier", "nobarrier",
	"cache_strategy=disabled", "cache_strategy=readahead", "cache_strategy=readaround",
	"errors=remount-ro", "errors=continue", "data=ordered", "data=writeback", "data=journal",
}

// check reports an option that must not reach the kernel.
func (fs FS) check() error {
	for _, o := range fs.Mount {
		if _, ok := flagOptions[o]; !ok && !slices.Contains(dataOptions, o) {
			return fmt.Errorf("mount option %q of %s is not allowed", o, fs.Type)
		}
	}
	return nil
}

// args returns the flags and data of mount(2).
func (fs FS) args(writable bool) (flags uintptr, data string) {
	var rest []string
	for _, o := range fs.Mount {
		flag, isFlag := flagOptions[o]
		switch {
		case isFlag:
			flags |= flag
		case o == "discard" && !writable: // the kernel would warn of it
		default:
			rest = append(rest, o)
		}
	}
	if !writable {
		flags |= unix.MS_RDONLY
	}
	if fs.Type == "ext4" && !slices.ContainsFunc(rest, func(o string) bool { return strings.HasPrefix(o, "errors=") }) {
		// The superblock of a hostile image may ask for a panic of the host.
		rest = append(rest, "errors=remount-ro")
	}
	return flags, strings.Join(rest, ",")
}
