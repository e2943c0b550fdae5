// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pidFile returns the file, beside the socket, that holds the process id of the
// block daemon that a snapshotter started there: it may outlive that one, and is
// the next one's to stop.
func pidFile(address string) string { return address + ".pid" }

// release lets go of the daemon. One that a snapshotter started and that serves
// nothing any more is stopped; one with devices goes on without us.
func (d *blockDaemon) release(ctx context.Context, log *slog.Logger) error {
	if err := d.stopIdle(ctx, log); err != nil {
		log.Warn("block daemon not stopped", slog.Any("err", err))
	}
	return d.Close()
}

func (d *blockDaemon) stopIdle(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, blockdStart)
	defer cancel()
	pidfd, err := startedBySnapshotter(ctx, d.address)
	if err != nil || pidfd < 0 {
		return err
	}
	defer unix.Close(pidfd) //nolint:errcheck // it holds nothing
	list, err := d.Attachments(ctx)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		log.Info("block daemon goes on serving", slog.Int("devices", len(list)))
		return nil
	}
	if err := stopProcess(pidfd); err != nil {
		return err
	}
	return os.Remove(pidFile(d.address))
}

// startedBySnapshotter returns a handle of the process that listens on address
// if a snapshotter started it, and -1 if it did not.
func startedBySnapshotter(ctx context.Context, address string) (pidfd int, err error) {
	text, err := os.ReadFile(pidFile(address))
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return -1, fmt.Errorf("%s: %w", pidFile(address), err)
	}
	if pidfd, err = unix.PidfdOpen(pid, 0); errors.Is(err, unix.ESRCH) {
		return -1, nil
	} else if err != nil {
		return -1, os.NewSyscallError("pidfd_open", err)
	}
	listener, err := listenerPID(ctx, address)
	if err != nil || listener != pid {
		_ = unix.Close(pidfd)
		return -1, err
	}
	return pidfd, nil
}

// listenerPID asks the kernel which process listens on the unix socket address.
func listenerPID(ctx context.Context, address string) (int, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		return 0, err
	}
	defer c.Close() //nolint:errcheck // nothing was sent
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%s: connection is a %T", address, c)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// stopProcess asks a process to end and returns when it has.
func stopProcess(pidfd int) error {
	if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	for deadline := time.Now().Add(blockdStart); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, max(0, int(time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return fmt.Errorf("it still runs after %v", blockdStart)
		default:
			return nil
		}
	}
}
