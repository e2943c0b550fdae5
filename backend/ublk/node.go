// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"fmt"
	"os"
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

// hurry has the kernel look once a second, not every 30, at requests that are
// not answered. A server that dies while each request that its queue can hold
// is under way is noticed only then. The kernel waits for what is under way
// meanwhile, and so may this.
func hurry(ctx context.Context, number uint32) error {
	const ms = "1000"
	name := filepath.Join("/sys/block", driver.BlockName(number), "queue/io_timeout")
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(name, []byte(ms), 0) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("write %s: %w", name, ctx.Err())
	}
}
