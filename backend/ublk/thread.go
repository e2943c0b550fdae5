// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A thread is one of the operating system's, for one function. The driver
// knows who serves a queue by the thread, and takes the server for dead when
// the thread is.
type thread struct {
	id    int // valid once begun is closed
	begun chan struct{}
	ended chan struct{}
}

// startThread runs f in a thread of its own, which ends with it.
func startThread(f func()) *thread {
	t := &thread{begun: make(chan struct{}), ended: make(chan struct{})}
	go t.run(f)
	return t
}

func (t *thread) run(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread of a process cannot end before the process.
		go t.run(f)
		<-t.begun
		runtime.UnlockOSThread()
		return
	}
	// Locked for good: the thread ends with the goroutine.
	t.id = unix.Gettid()
	close(t.begun)
	defer close(t.ended)
	f()
}

// wait waits until the thread has ended, which it does a moment after its
// function.
func (t *thread) wait() {
	<-t.ended
	for unix.Tgkill(os.Getpid(), t.id, 0) == nil {
		time.Sleep(50 * time.Microsecond)
	}
}

// giveUpAdmin takes from the calling thread what it does not need. The driver
// has the kernel look for partitions only if those who serve a device are
// privileged. That would be a read for each device that is made; and the kernel
// would wait for it holding a lock that, if this process were killed meanwhile,
// nobody could ever take again.
func giveUpAdmin() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read the thread's capabilities: %w", err)
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("give up CAP_SYS_ADMIN: %w", err)
	}
	return nil
}
