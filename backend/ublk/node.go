// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

// A node is the special file of a disk.
type node struct {
	path string
	dev  uint64
}

// findNode returns the disk's special file, which is there as soon as the disk
// is.
func findNode(number uint32, p driver.Params) (node, error) {
	n := node{path: filepath.Join("/dev", driver.BlockName(number))}
	var st unix.Stat_t
	if err := unix.Stat(n.path, &st); err != nil {
		return node{}, fmt.Errorf("find the disk %s: %w", n.path, err)
	}
	n.dev = st.Rdev
	if want := unix.Mkdev(p.Major, p.Minor); st.Mode&unix.S_IFMT != unix.S_IFBLK || p.Major != 0 && st.Rdev != want {
		return node{}, fmt.Errorf("%s is not the disk %d:%d", n.path, p.Major, p.Minor)
	}
	return n, nil
}
