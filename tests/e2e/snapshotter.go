// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Snapshotter is the pair of daemons behind containerd's snapshotter
// "overlaybd": overlaybd-snapshotter, and the overlaybd-blockd that it starts.
type Snapshotter struct {
	Dir    string // holds all its files
	Config string // path of the configuration

	t    testing.TB
	bin  string
	proc *Process
}

// exporterVar chooses how devices reach the kernel; "auto" if it is
// not set.
const exporterVar = "E2E_EXPORTER"

const snapshotterConfig = `root = %[1]q
address = %[2]q
[log]
level = "debug"
[metrics]
snapshotter_address = %[3]q
blockd_address = %[4]q
pprof = true
[blockd]
address = %[5]q
state_dir = %[6]q
patience = "30s"
exporter = %[10]q
[cache]
dir = %[7]q
min_free = "0"
[registry]
hosts_dir = ""
docker_config = ""
cred_file = ""
plain_http = [%[8]q]
[fuse]
dir = %[9]q
[turbo]
containerd = %[11]q
`

// startSnapshotter starts the daemons of e, with the lines of configuration in
// opts: those of Config begin with a table of their own.
func startSnapshotter(t testing.TB, e *Env, opts Options) *Snapshotter {
	t.Helper()
	s := &Snapshotter{Dir: e.Dir, Config: filepath.Join(e.Dir, "overlaybd.toml"), t: t, bin: Bin(t)}
	in := func(name string) string { return filepath.Join(e.Dir, name) }
	text := fmt.Sprintf(snapshotterConfig, in("snapshotter"), e.SnapshotterSocket(), in("sm.sock"), in("bm.sock"),
		in("b.sock"), in("blockd"), in("cache"), e.Registry.Host, in("devices"), cmp.Or(os.Getenv(exporterVar), "auto"),
		in("c.sock"))
	if err := os.WriteFile(s.Config, []byte(text+opts.Turbo+"\n"+opts.Config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.proc.Stop(), s.stopBlockd()); err != nil {
			t.Error(err)
		}
		s.proc.show(t)
	})
	s.Restart()
	return s
}

// Restart starts the snapshotter after Kill, and waits until it answers.
func (s *Snapshotter) Restart() {
	s.t.Helper()
	s.proc = spawn(s.t, s.Dir, "overlaybd-snapshotter", nil, filepath.Join(s.bin, "overlaybd-snapshotter"), "--config", s.Config)
	s.proc.await(s.t, func() error {
		c, err := (&net.Dialer{}).DialContext(s.t.Context(), "unix", filepath.Join(s.Dir, "s.sock"))
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// AwaitSnapshotter waits until containerd reaches the snapshotter again, which
// it does not try at once after it was gone.
func (e *Env) AwaitSnapshotter() {
	e.t.Helper()
	e.Snapshotter.proc.await(e.t, func() error {
		_, err := e.TryCtr(e.t.Context(), "snapshots", "--snapshotter", "overlaybd", "list")
		return err
	})
}

// Kill ends the snapshotter, but not the block daemon, with SIGKILL.
func (s *Snapshotter) Kill() { s.proc.Kill() }

// Stop asks the snapshotter to leave, as a service manager does.
func (s *Snapshotter) Stop() {
	s.t.Helper()
	if err := s.proc.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

// BlockdAnswers reports whether there is a block daemon.
func (s *Snapshotter) BlockdAnswers() bool {
	_, err := s.blockdPID()
	return err == nil
}

// PIDs returns the process ids of the daemons.
func (s *Snapshotter) PIDs() (snapshotter, blockd int) {
	s.t.Helper()
	blockd, err := s.blockdPID()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.proc.PID(), blockd
}

// blockdPID asks the kernel who listens on the block daemon's socket.
func (s *Snapshotter) blockdPID() (int, error) {
	addr := &net.UnixAddr{Name: filepath.Join(s.Dir, "b.sock"), Net: "unix"}
	c, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return 0, err
	}
	defer c.Close() //nolint:errcheck // it only asked
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// stopBlockd asks the block daemon to leave and waits until it has. It is no
// child of this process.
func (s *Snapshotter) stopBlockd() error {
	pid, err := s.blockdPID()
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil // it never came, or left with the snapshotter
	}
	if err != nil {
		return err
	}
	ended, err := signalProcess(pid, unix.SIGTERM)
	if err == nil && !ended {
		_, err = signalProcess(pid, unix.SIGKILL)
		err = errors.Join(fmt.Errorf("overlaybd-blockd did not stop within %v", stopTimeout), err)
	}
	return err
}

// KillBlockd ends the block daemon with SIGKILL, and waits until it is gone.
func (s *Snapshotter) KillBlockd() {
	s.t.Helper()
	pid, err := s.blockdPID()
	if err != nil {
		s.t.Fatal(err)
	}
	if ended, err := signalProcess(pid, unix.SIGKILL); err != nil || !ended {
		s.t.Fatalf("overlaybd-blockd was killed and ended: %v, %v", ended, err)
	}
}

// signalProcess sends a signal to a process, and reports whether it ended
// within stopTimeout.
func signalProcess(pid int, signal unix.Signal) (ended bool, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing to lose
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil {
		return false, err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(stopTimeout/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			return n == 1, err
		}
	}
}

// Get returns a page that a daemon serves beside its metrics, such as
// "debug/pprof/goroutine?debug=1". The daemon is "sm" or "bm".
func (s *Snapshotter) Get(daemon, page string) (*http.Response, error) {
	socket := filepath.Join(s.Dir, daemon+".sock")
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://daemon/"+page, http.NoBody)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}
