// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// stopTimeout is how long a process may take to leave after SIGTERM.
const stopTimeout = time.Minute

// A Process is a daemon the environment started. Its output goes to a file
// that is shown when the test fails.
type Process struct {
	Name string
	Log  string // path of the file that takes stdout and stderr

	cmd  *exec.Cmd
	done chan struct{} // closed once the process is reaped
}

// startProcess runs argv as spawn does, and stops it when the test ends.
func startProcess(t testing.TB, dir, name string, env []string, argv ...string) *Process {
	t.Helper()
	p := spawn(t, dir, name, env, argv...)
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		p.show(t)
	})
	return p
}

// spawn runs argv with env added to the environment. The log is appended to,
// so that it survives a restart.
func spawn(t testing.TB, dir, name string, env []string, argv ...string) *Process {
	t.Helper()
	p := &Process{Name: name, Log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// The test's context ends before its cleanups run, and those want to stop
	// the daemons in order.
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own: the terminal's Ctrl-C is for whoever started us.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // the state is in ProcessState
		close(p.done)
	}()
	return p
}

// show logs the end of the output, if the test has failed.
func (p *Process) show(t testing.TB) {
	t.Helper()
	if t.Failed() {
		t.Logf("%s (%v) said at last:\n%s", p.Name, p.cmd.ProcessState, tail(p.Log, 8<<10))
	}
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop asks the process to leave, waits for it, and kills it if it will not.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have left by itself
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		p.Kill()
		return fmt.Errorf("%s did not stop within %v", p.Name, stopTimeout)
	}
}

// Kill ends the process with SIGKILL and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have left by itself
	<-p.done
}

// await calls ready until it succeeds, the process or the test ends, or a
// minute passes.
func (p *Process) await(t testing.TB, ready func() error) {
	t.Helper()
	timeout := time.After(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended before it was ready: %v", p.Name, p.cmd.ProcessState)
		case <-t.Context().Done():
			t.Fatalf("waiting for %s: %v", p.Name, context.Cause(t.Context()))
		case <-timeout:
			t.Fatalf("%s is not ready: %v", p.Name, err)
		case <-tick.C:
		}
	}
}

// tail returns the last n bytes of a file, for a human to read.
func tail(name string, n int) []byte {
	text, err := os.ReadFile(name)
	if err != nil {
		return []byte(err.Error())
	}
	if len(text) > n {
		text = text[len(text)-n:]
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	return text
}

// run executes a command to its end and fails the test when that fails. When
// the test ends first, so do the command and all it has started.
func run(t testing.TB, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}
