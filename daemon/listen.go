// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ListenUnix listens on the unix socket path, for its owner only, and creates
// its directory. It takes over a socket whose process is gone, and fails with
// syscall.EADDRINUSE where one still serves it a second later.
//
// Who holds a lock on the file path+".lock" serves the socket. That file is
// never removed: a lock on a removed file excludes nobody.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lock, err := awaitLock(ctx, path+".lock", listenPatience)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := takeOver(ctx, path)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &lockedListener{l, lock}, nil
}

// lockedListener holds its lock until the socket is gone.
type lockedListener struct {
	net.Listener
	lock *os.File
}

func (l *lockedListener) Close() error {
	return errors.Join(l.Listener.Close(), l.lock.Close())
}

// How long to wait for a process that holds a lock, since it may be ending.
const (
	listenPatience = time.Second
	lockPatience   = 10 * time.Second
)

// Lock keeps other processes from whatever the file path stands for, until its
// result is closed or the process ends, and creates the file. It waits a while
// for a process that holds it to end.
func Lock(ctx context.Context, path string) (io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := awaitLock(ctx, path, lockPatience)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func awaitLock(ctx context.Context, path string, patience time.Duration) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		f, err := lockFile(path)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return f, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// lockFile creates and locks a file, and leaves our process id in it for
// whoever fails to.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("served by process %s: %w", holder(f), syscall.EADDRINUSE)
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writePID(f))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func writePID(f *os.File) error {
	_, err := fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}

// holder returns the process id in a lock file.
func holder(f *os.File) string {
	var buf [20]byte
	n, _ := f.ReadAt(buf[:], 0)
	return strings.TrimSpace(string(buf[:n]))
}

// takeOver listens on path in place of a dead socket. A live one is possible
// even under the lock: another program's, which knows nothing of it.
func takeOver(ctx context.Context, path string) (net.Listener, error) {
	if err := removeDead(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The kernel gives the socket file the mode of the socket: there is no
		// moment at which others could connect.
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	return lc.Listen(ctx, "unix", path)
}

// removeDead removes a socket on which nobody listens.
func removeDead(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("what is there is no socket: %w", syscall.EADDRINUSE)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("served by a process that took no lock: %w", syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
