// SPDX-License-Identifier: Apache-2.0

package need

import (
	"bufio"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// start starts a server that ends with the test binary, and returns once it
// has written the words to log, a pipe of its. stop kills it and waits for it.
func start(t testing.TB, cmd *exec.Cmd, log io.Reader, words string) (stop func()) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ready, done := make(chan error), make(chan string, 1), make(chan struct{})
	go func() {
		defer close(done)
		// The kernel kills the server when this thread ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		ready <- readUntil(log, words)
		_, _ = io.Copy(io.Discard, log) // until it ends
		_ = cmd.Wait()                  // killed
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		<-done
	}
	if said := <-ready; said != "" {
		stop()
		t.Fatalf("%s did not start:\n%s", cmd.Path, said)
	}
	return stop
}

// readUntil reads lines until one contains the words. If none does, it returns
// what it read.
func readUntil(r io.Reader, words string) string {
	var said strings.Builder
	for lines := bufio.NewReader(r); ; {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if strings.Contains(line, words) {
			return ""
		}
		if err != nil {
			return said.String()
		}
	}
}
