// SPDX-License-Identifier: Apache-2.0

package tcmu_test

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

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
)

// The tests kill processes that serve devices: this test binary, run again.

// roleVar tells a child what to do: "serve <dir>" or "churn <dir>".
const roleVar = "TCMU_TEST_ROLE"

func TestMain(m *testing.M) {
	role, dir, isChild := strings.Cut(os.Getenv(roleVar), " ")
	if !isChild {
		os.Exit(m.Run()) //nolint:forbidigo // this is main
	}
	err := map[string]func(dir string) error{"serve": serve, "churn": churn}[role](dir)
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(1) //nolint:forbidigo // this is main
}

// serve serves the files of dir, as devices that exist or new ones, until its
// parent is gone.
func serve(dir string) error {
	e, err := tcmu.New(tcmu.Options{})
	if err != nil {
		return err
	}
	ctx := context.Background()
	open := func(_ context.Context, id string) (backend.Volume, error) { return openFile(filepath.Join(dir, id)) }
	if _, err := e.Recover(ctx, open); err != nil {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		v, err := openFile(filepath.Join(dir, f.Name()))
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

// churn makes and removes devices until it is killed.
func churn(string) error {
	e, err := tcmu.New(tcmu.Options{})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		d, err := e.Export(context.Background(), fmt.Sprintf("churn-%d", i), backendtest.NewMemVolume(1<<20))
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
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
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
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

func (c *child) wait() {
	_ = c.cmd.Wait() // it was killed
	_ = c.in.Close()
}

// A fileVolume outlives the process that writes it.
type fileVolume struct {
	f    *os.File
	size int64
}

var _ backend.Writer = (*fileVolume)(nil)

func openFile(name string) (*fileVolume, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fileVolume{f, st.Size()}, nil
}

func (v *fileVolume) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return v.f.ReadAt(p, off)
}

func (v *fileVolume) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return v.f.WriteAt(p, off)
}

func (v *fileVolume) Discard(_ context.Context, off, n int64) error {
	return unix.Fallocate(int(v.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (v *fileVolume) Sync(context.Context) error { return v.f.Sync() }
func (v *fileVolume) Size() int64                { return v.size }
func (v *fileVolume) Close() error               { return v.f.Close() }
