// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// The tests run the daemon as a process of its own: this test binary, which
// then is nothing but the command.
const roleVar = "BLOCKD_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVar) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A machine runs one block daemon after the other.
type machine struct {
	t    *testing.T
	dir  string
	cfg  *conf.Config
	cmd  *exec.Cmd
	exit chan error // of cmd
	api  *blockapi.Client

	mounts []string
}

func newMachine(t *testing.T, kind string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), cfg: conf.Default()}
	c := m.cfg
	c.Root, c.Address = filepath.Join(m.dir, "root"), filepath.Join(m.dir, "snapshotter.sock")
	c.Blockd.StateDir, c.Blockd.Address = filepath.Join(m.dir, "state"), filepath.Join(m.dir, "blockd.sock")
	c.Cache.Dir, c.Fuse.Dir = filepath.Join(m.dir, "cache"), filepath.Join(m.dir, "fuse")
	c.Cache.MinFree = 0
	m.configure(kind)
	var err error
	if m.api, err = blockapi.Dial(c.Blockd.Address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.finish)
	return m
}

// configure sets the exporter of the next daemon.
func (m *machine) configure(kind string) {
	m.t.Helper()
	m.cfg.Blockd.Exporter = kind
	f, err := os.Create(m.file("config.toml"))
	if err != nil {
		m.t.Fatal(err)
	}
	if err := errors.Join(m.cfg.WriteTOML(f), f.Close()); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

// start runs a daemon until it answers.
func (m *machine) start() {
	m.t.Helper()
	m.cmd = exec.Command(os.Args[0], "--config", m.file("config.toml")) //nolint:noctx // the test ends it as it wants
	m.cmd.Env = append(os.Environ(), roleVar+"=blockd")
	m.cmd.Stderr = m.t.Output()
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.exit = make(chan error, 1)
	go func(cmd *exec.Cmd, exit chan error) { exit <- cmd.Wait() }(m.cmd, m.exit)
	for {
		_, err := m.api.Attachments(m.t.Context())
		if err == nil {
			return
		}
		select {
		case err := <-m.exit:
			m.cmd = nil
			m.t.Fatal("the daemon has ended:", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// kill ends the daemon at once, and waits until it is gone.
func (m *machine) kill() {
	m.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	if err := <-m.exit; err == nil {
		m.t.Error("the daemon had ended by itself")
	}
	m.cmd = nil
}

// stop has the daemon end by itself.
func (m *machine) stop() {
	m.t.Helper()
	m.ask()
	m.awaitEnd()
}

// ask tells the daemon to end.
func (m *machine) ask() {
	m.t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) awaitEnd() {
	m.t.Helper()
	if err := <-m.exit; err != nil {
		m.t.Error("the daemon stopped with", err)
	}
	m.cmd = nil
}

// finish takes away what a test that failed has left, and ends the daemon.
func (m *machine) finish() {
	for _, dir := range m.mounts {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if m.cmd != nil {
		ctx := context.WithoutCancel(m.t.Context())
		list, _ := m.api.Attachments(ctx)
		for _, a := range list {
			_ = m.api.Detach(ctx, a.ID)
		}
		m.kill()
	}
	if err := m.api.Close(); err != nil {
		m.t.Error(err)
	}
}

// save writes a spec and returns its path.
func (m *machine) save(name string, v *spec.Volume) string {
	m.t.Helper()
	path := m.file(name + ".json")
	if err := v.Save(path); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machine) attach(id, path string) blockapi.Attachment {
	m.t.Helper()
	a, err := m.api.Attach(m.t.Context(), id, path)
	if err != nil {
		m.t.Fatal(err)
	}
	return a
}

func (m *machine) detach(id string) {
	m.t.Helper()
	if err := m.api.Detach(m.t.Context(), id); err != nil {
		m.t.Fatal(err)
	}
}

// await waits until the daemon says of the device id what is wanted; "" is
// nothing.
func (m *machine) await(id string, want blockapi.State) (a blockapi.Attachment) {
	m.t.Helper()
	for {
		list, err := m.api.Attachments(m.t.Context())
		if err != nil {
			m.t.Fatal(err)
		}
		a = blockapi.Attachment{}
		for _, each := range list {
			if each.ID == id {
				a = each
			}
		}
		if a.State == want {
			return a
		}
		<-time.After(20 * time.Millisecond)
	}
}

// wantNothing expects no device in the daemon's state directory or the kernel
// once the daemon has stopped.
func (m *machine) wantNothing() {
	m.t.Helper()
	m.stop()
	for _, pattern := range []string{
		filepath.Join(m.cfg.Blockd.StateDir, "devices", "*"),
		"/sys/kernel/config/target/core/user_*",
		"/sys/kernel/config/target/loopback/naa.*",
		"/sys/class/uio/uio*",
		"/dev/ublkc*",
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			m.t.Errorf("left behind: %v", left)
		}
	}
}

// command runs a program of the machine.
func (m *machine) command(name string, args ...string) {
	m.t.Helper()
	if out, err := exec.CommandContext(m.t.Context(), name, args...).CombinedOutput(); err != nil {
		m.t.Fatal(fmt.Errorf("%s %v: %w\n%s", name, args, err, out))
	}
}
