// SPDX-License-Identifier: Apache-2.0

package need

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"
)

// A MariaDBServer is a database server of a test's own. Its user is root,
// without a password, on a socket.
type MariaDBServer struct {
	Socket string

	t       testing.TB
	program string
	args    []string
	stop    func() // kills the process and waits for it, if there is one
}

// MariaDB starts a database server that ends with the test, or skips the test
// unless MariaDB's server is installed.
func MariaDB(t testing.TB) *MariaDBServer {
	t.Helper()
	program, err := exec.LookPath("mariadbd")
	if err != nil {
		program = "/usr/sbin/mariadbd"
	}
	_, err = os.Stat(program)
	installer, err2 := exec.LookPath("mariadb-install-db")
	check(t, "mariadb", err == nil && err2 == nil, "mariadbd and mariadb-install-db are not installed")

	dir, err := os.MkdirTemp("", "mariadb") //nolint:usetesting // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &MariaDBServer{Socket: filepath.Join(dir, "s"), t: t, program: program, args: serverArgs(t, dir), stop: func() {}}
	install := exec.CommandContext(t.Context(), installer, append(s.args, "--auth-root-authentication-method=normal", "--skip-test-db")...)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("install database: %v\n%s", err, out)
	}
	t.Cleanup(s.Kill)
	s.Start()
	return s
}

// serverArgs are the arguments of the server and of its installer.
func serverArgs(t testing.TB, dir string) []string {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"--no-defaults", "--user=" + u.Username, "--datadir=" + filepath.Join(dir, "data"),
		"--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M", "--innodb-use-native-aio=0",
	}
}

// Start starts the server after Kill, and waits until it is ready.
func (s *MariaDBServer) Start() {
	s.t.Helper()
	// The test's context ends before its cleanups, which may want the server.
	cmd := exec.CommandContext(context.WithoutCancel(s.t.Context()), s.program, append(s.args,
		"--socket="+s.Socket, "--skip-networking", "--skip-log-bin", "--pid-file="+s.Socket+".pid")...)
	log, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	stop := start(s.t, cmd, log, "ready for connections")
	s.stop = func() {
		stop()
		s.stop = func() {}
	}
}

// Kill ends the server at once, as a crash does.
func (s *MariaDBServer) Kill() {
	s.stop()
}
