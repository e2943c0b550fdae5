// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A Survivor is an exporter whose devices outlive the process.
type Survivor interface {
	backend.Exporter
	backend.Recoverer
	Abandon() error
	Close() error
}

// RunRecovery kills processes that serve devices: the test binary, run again.

// roleVar tells a child what to do: "serve <dir>", "churn <dir>" or "stall
// <dir>".
const roleVar = "BACKENDTEST_ROLE"

// Main is TestMain for a package that calls RunRecovery, whose Recovery.New it
// gets.
func Main(m *testing.M, mk func(dir string) (Survivor, error)) {
	role, dir, isChild := strings.Cut(os.Getenv(roleVar), " ")
	if !isChild {
		os.Exit(m.Run()) //nolint:forbidigo // this is main
	}
	e, err := mk(dir)
	if err == nil {
		err = map[string]func(e Survivor, dir string) error{"serve": serve, "churn": churn, "stall": stall}[role](e, dir)
	}
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(1) //nolint:forbidigo // this is main
}

// serve serves the files of dir, as devices that exist or new ones, until its
// parent is gone.
func serve(e Survivor, dir string) error {
	ctx := context.Background()
	if _, err := Recover(ctx, e, filesOf(dir)); err != nil {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		v, err := OpenFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		d, err := e.Export(ctx, f.Name(), v)
		if errors.Is(err, fs.ErrExist) {
			_ = v.Close()
			continue
		}
		if err != nil {
			return err
		}
		say(d.Path())
	}
	say("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, e.Abandon())
}

// filesOf opens the volumes of dir by their ids.
func filesOf(dir string) func(context.Context, string) (backend.Volume, error) {
	return func(_ context.Context, id string) (backend.Volume, error) { return OpenFile(filepath.Join(dir, id)) }
}

// churn makes and removes devices until it is killed.
func churn(e Survivor, _ string) error {
	for i := 0; ; i++ {
		d, err := e.Export(context.Background(), fmt.Sprintf("churn-%d", i), NewMemVolume(1<<20))
		if err != nil {
			return err
		}
		say("made")
		if err := d.Remove(context.Background()); err != nil {
			return err
		}
		say("removed")
	}
}

// stall makes the device stallID, whose first read is never answered: by that
// the kernel looks for partitions, if it does.
func stall(e Survivor, _ string) error {
	v := NewFaultVolume(NewMemVolume(LoadSize))
	entered, _ := v.Stall(Read, 0)
	go func() {
		<-entered
		say("reading")
	}()
	if _, err := e.Export(context.Background(), stallID, v); err != nil {
		return err
	}
	say("made")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// stallID names the device that stall makes.
const stallID = "stalled"

// say tells the parent, if there still is one.
func say(word string) { _, _ = fmt.Fprintln(os.Stdout, word) }

// A child is a process with a role.
type child struct {
	cmd *exec.Cmd
	out *bufio.Reader
	in  io.Closer
}

func startChild(t *testing.T, role, dir string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:noctx // it is killed when the test wants
	cmd.Env = append(os.Environ(), roleVar+"="+role+" "+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // unless it has ended, as it should
	return &child{cmd: cmd, out: bufio.NewReader(out), in: in}
}

// line returns the next line the child prints.
func (c *child) line(t *testing.T) string {
	t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatal("the child has ended:", err)
	}
	return strings.TrimSpace(s)
}

// kill ends the child at once. It may wait in the kernel for the next process
// to answer, so that it is waited for separately.
func (c *child) kill(t *testing.T) {
	t.Helper()
	must(t, c.cmd.Process.Kill())
}

func (c *child) wait() {
	_ = c.cmd.Wait() // it was killed
	_ = c.in.Close()
}
