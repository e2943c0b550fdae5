// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A thread of a process that was killed lives on while it waits in the kernel
// for a disk's commands to be answered, which only the process could do. The
// next process cannot serve that disk, or any other the dead one served: their
// rings are still in the thread's memory. So threads that may wait for a disk
// have its backstore's name, and the next process has the kernel fail the
// commands of a disk that such a thread waits for. The disk is half made or
// half removed, and nobody uses it.

// waiter is the name of threads that wait for the disk of b. A thread's name
// has up to 15 bytes.
func (b Backstore) waiter() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d/%s", b.HBA, b.ID))
	return "tcmu " + hex.EncodeToString(sum[:])[:10]
}

// await calls f, which may wait for commands of b's disk.
func await(b Backstore, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	name, err := os.ReadFile("/proc/thread-self/comm")
	if err != nil {
		return err
	}
	if err := setThreadName(b.waiter()); err != nil {
		return err
	}
	defer func() { _ = setThreadName(strings.TrimSuffix(string(name), "\n")) }()
	return f()
}

func setThreadName(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(p)), 0, 0, 0)
}

// LetGo has the kernel fail the commands that threads of dead processes wait
// for, until there are no such threads. It sees those of its PID namespace.
func (t Tree) LetGo(ctx context.Context, all []Backstore) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		held, err := t.held(all)
		if len(held) == 0 || err != nil {
			return err
		}
		for _, b := range held {
			_ = t.failCommands(b) // the thread may be gone, and have removed it
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("a thread of a dead process waits for device %q: %w", held[0].ID, ctx.Err())
		}
	}
}

// held returns those of all that threads of dead processes wait for.
func (t Tree) held(all []Backstore) (held []Backstore, err error) {
	if len(all) == 0 {
		return nil, nil
	}
	names, err := filepath.Glob(filepath.Join(t.Proc, "[0-9]*", "task", "[0-9]*", "status"))
	waiters := make(map[string]bool)
	for _, name := range names {
		if s, err := os.ReadFile(name); err == nil { // or it has ended
			waiters[killed(string(s))] = true
		}
	}
	for _, b := range all {
		if waiters[b.waiter()] {
			held = append(held, b)
		}
	}
	return held, err
}

// killed returns the name of a thread that would have ended if it did not wait
// in the kernel, and "" for any other.
func killed(status string) (name string) {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
		switch key {
		case "Name":
			name = value
		case "SigPnd":
			if set, err := strconv.ParseUint(value, 16, 64); err == nil && set&(1<<(unix.SIGKILL-1)) != 0 {
				return name
			}
		}
	}
	return ""
}
