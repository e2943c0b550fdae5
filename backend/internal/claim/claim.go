// SPDX-License-Identifier: Apache-2.0

// Package claim finds out whether a disk is in use, and keeps it from being
// mounted while it is removed.
package claim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
)

// grace is for how long someone may have a disk open that is to be removed:
// udev looks at every disk that was closed.
const grace = 200 * time.Millisecond

// A Claim on a disk keeps it from being mounted.
type Claim struct {
	fd   int // -1 if there is no such disk any more
	node string
	dev  uint64
}

// Take makes sure that nobody uses the disk whose special file is node and
// whose device number is dev, or fails with backend.ErrBusy. The kernel says so
// of those who have it for themselves, such as mounts, but not of those who
// have merely opened it: they are looked for in /proc, which shows the
// processes of this PID namespace.
func Take(node string, dev uint64) (Claim, error) {
	// A system call of its own: os.Open would poll.
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case isGone(err):
		return Claim{fd: -1}, nil
	case errors.Is(err, unix.EBUSY):
		return Claim{}, busy("mounted, or part of another device")
	case err != nil:
		return Claim{}, fmt.Errorf("open %s: %w", node, err)
	}
	c := Claim{fd, node, dev}
	for deadline := time.Now().Add(grace); ; {
		pid := c.opener()
		if pid == "" {
			return c, nil
		}
		if time.Now().After(deadline) {
			c.Release()
			return Claim{}, busy("process " + pid + " has it open")
		}
		time.Sleep(grace / 20)
	}
}

// Release lets the disk be used again, if it is still there.
func (c Claim) Release() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd) // opened for reading
	}
}

// opener returns the id of a process that has the disk open, or "".
func (c Claim) opener() (pid string) {
	links, _ := filepath.Glob("/proc/[0-9]*/fd") // the pattern is sound
	self := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.fd)
	for _, dir := range links {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // the process has ended
		}
		for _, fd := range fds {
			name := filepath.Join(dir, fd.Name())
			if name != self && c.isOpen(name) {
				return strings.Split(name, "/")[2]
			}
		}
	}
	return ""
}

// isOpen reports whether the descriptor at name is of the disk. It looks at
// the file itself only if it is called what the disk is called: anything else
// may hang.
func (c Claim) isOpen(name string) bool {
	to, err := os.Readlink(name)
	if err != nil || filepath.Base(to) != filepath.Base(c.node) {
		return false
	}
	var st unix.Stat_t
	err = unix.Stat(name, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == c.dev
}

// busy is the error for a disk in use.
func busy(why string) error { return fmt.Errorf("%w: %s", backend.ErrBusy, why) }

// isGone reports whether err is that of a disk that nobody can use any more.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}
