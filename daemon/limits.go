// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFiles is the number of open files a node full of devices asks for: the
// units' LimitNOFILE.
const maxFiles = 1 << 20

// MemoryLimit makes the garbage collector work harder as the process nears the
// given bytes. 0 leaves it alone.
func MemoryLimit(bytes int64) {
	if bytes > 0 {
		debug.SetMemoryLimit(bytes)
	}
}

// RaiseFileLimit raises the limit of open files as far as permitted, and
// returns what holds.
func RaiseFileLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read limit of open files: %w", err)
	}
	if limit.Cur >= maxFiles {
		return limit.Cur, nil
	}
	for _, hard := range []uint64{max(limit.Max, maxFiles), limit.Max} {
		err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: min(hard, maxFiles), Max: hard})
		if err == nil {
			return min(hard, maxFiles), nil
		}
	}
	return limit.Cur, nil
}

// SetIOFlusher asks the kernel not to wait, when it must find memory for this
// process, on writes that only this process can complete. It needs
// CAP_SYS_RESOURCE, and a binary without cgo: the setting is per thread, and
// every thread must have it for later ones to inherit it.
func SetIOFlusher() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("become an I/O flusher: %w", errno)
	}
	return nil
}
