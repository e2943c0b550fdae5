// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// lastStep begins the last line of progress.
const lastStep = "cleaning up"

// TestDemo runs the demonstration to its end, and interrupts it at each step:
// it shows its table, or says that it was interrupted, and leaves nothing.
func TestDemo(t *testing.T) {
	need.Time(t, "it starts containerd")
	need.Root(t)
	need.FUSE(t)
	need.Loop(t)
	program := filepath.Join(t.TempDir(), "demo")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, at := range []string{"", "converting", "plain pull", "lazy pull", lastStep} {
		t.Run("interrupted at "+at, func(t *testing.T) { interruptAt(t, program, at) })
	}
}

// interruptAt runs the demonstration until it says what begins with line, if
// that is not empty.
func interruptAt(t *testing.T, program, line string) {
	dir, err := os.MkdirTemp("/tmp", "d") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-small")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := interrupt(t, cmd.Process, stderr, line)
	_ = cmd.Wait() // the exit code tells
	code := cmd.ProcessState.ExitCode()
	switch {
	case line == "" && (code != 0 || !strings.Contains(stdout.String(), "pull to first output")):
		t.Errorf("exit code %d, it printed\n%s%s", code, &stdout, said)
	case line == lastStep && code != 0 && code != 130 && code != -1: // it may be over before the signal comes, or just then
		t.Errorf("exit code %d, it said\n%s", code, said)
	case line != "" && line != lastStep && (code != 130 || !strings.Contains(said, "nothing is left behind")):
		t.Errorf("exit code %d, it said\n%s", code, said)
	}
	for _, l := range leftIn(t, dir) {
		t.Errorf("left behind: %s", l)
	}
	if err := os.Remove(dir); err != nil {
		t.Error(err)
	}
}

// interrupt returns all that p says, and interrupts p at the line that begins
// with at.
func interrupt(t *testing.T, p *os.Process, r io.Reader, at string) string {
	t.Helper()
	var said strings.Builder
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if at != "" && strings.HasPrefix(lines.Text(), at) {
			if err := p.Signal(unix.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Error(err)
			}
		}
	}
	return said.String()
}

// leftIn returns the mounts, loop devices and processes that use dir.
func leftIn(t *testing.T, dir string) (left []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir+"/") {
			left = append(left, line)
		}
	}
	for _, pattern := range []string{"/sys/block/loop*/loop/backing_file", "/proc/[0-9]*/cmdline"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil && bytes.Contains(text, []byte(dir+"/")) {
				left = append(left, f+": "+string(text))
			}
		}
	}
	return left
}
