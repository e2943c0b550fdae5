// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// apart calls f, which may wait in the kernel for what only this process can
// do, in a thread that shares no open files with the others. If the process is
// killed meanwhile the thread lives on until the next process has done it, and
// must not keep that process from opening what this one had open.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The files of the first thread are those /proc shows of the process.
			done <- apart(f)
			runtime.UnlockOSThread()
			return
		}
		// Locked for good: the thread ends with the goroutine.
		if err := letGoOfFiles(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// letGoOfFiles gives the thread files of its own, and closes them. It keeps
// those by which the Go runtime polls: that may happen in any thread.
func letGoOfFiles() error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return err
	}
	const dir = "/proc/thread-self/fd/"
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		fd, err := strconv.Atoi(file.Name())
		if err != nil {
			return err
		}
		to, err := os.Readlink(dir + file.Name())
		if err != nil || fd <= 2 || strings.HasPrefix(to, "anon_inode:") {
			continue // closed since, as dir is, or to be kept
		}
		if err := unix.Close(fd); err != nil && !errors.Is(err, unix.EBADF) {
			return err
		}
	}
	return nil
}
