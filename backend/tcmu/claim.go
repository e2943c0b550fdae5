// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/configfs"
)

// grace is for how long someone may have a disk open that is to be removed:
// udev looks at every disk that was closed.
const grace = 200 * time.Millisecond

// A claim on a disk keeps it from being mounted.
type claim struct{ fd int }

// claimDisk makes sure that nobody uses the disk. The kernel says so of those
// who have it for themselves, such as mounts, but not of those who have merely
// opened it: they are looked for in /proc.
func claimDisk(d configfs.Disk) (claim, error) {
	// A system call of its own: os.Open would poll.
	fd, err := unix.Open(d.Node, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case isGone(err):
		return claim{-1}, nil
	case errors.Is(err, unix.EBUSY):
		return claim{}, busy("mounted, or part of another device")
	case err != nil:
		return claim{}, fmt.Errorf("open %s: %w", d.Node, err)
	}
	c := claim{fd}
	for deadline := time.Now().Add(grace); ; {
		pid := c.opener(d)
		if pid == "" {
			return c, nil
		}
		if time.Now().After(deadline) {
			c.release()
			return claim{}, busy("process " + pid + " has it open")
		}
		time.Sleep(grace / 20)
	}
}

func (c claim) release() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd) // opened for reading
	}
}

// opener returns the id of a process that has the disk open, or "".
func (c claim) opener(d configfs.Disk) (pid string) {
	links, _ := filepath.Glob("/proc/[0-9]*/fd") // the pattern is sound
	self := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.fd)
	for _, dir := range links {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // the process has ended
		}
		for _, fd := range fds {
			name := filepath.Join(dir, fd.Name())
			if name != self && isOpen(name, d) {
				return strings.Split(name, "/")[2]
			}
		}
	}
	return ""
}

// isOpen reports whether the descriptor at name is of the disk. It looks at
// the file itself only if it is called what the disk is called: anything else
// may hang.
func isOpen(name string, d configfs.Disk) bool {
	to, err := os.Readlink(name)
	if err != nil || filepath.Base(to) != d.Name {
		return false
	}
	var st unix.Stat_t
	err = unix.Stat(name, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == d.Dev
}
