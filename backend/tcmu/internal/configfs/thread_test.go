// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestApart asks for threads that have none of the process's files, from which
// it does not suffer.
func TestApart(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd := int(w.Fd())
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			err := apart(func() error {
				runtime.GC() // polls, and so does what waits for it
				_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
				return err
			})
			if !errors.Is(err, unix.EBADF) {
				t.Errorf("a file of the process: %v, want EBADF", err)
			}
		})
	}
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("someone still has the file open")
	}
}
