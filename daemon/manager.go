// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"
)

// notifyTimeout bounds a message to the service manager, which may be busy.
const notifyTimeout = 2 * time.Second

// A Manager is the service manager, such as systemd, that started the process
// and waits to hear from it (sd_notify(3)). A nil Manager is none.
type Manager struct {
	socket   string
	watchdog time.Duration // 0: off
}

// FindManager returns the service manager that the environment names, or nil.
// It takes the variables out of the environment, so that programs started
// later do not speak for this process.
func FindManager() *Manager {
	socket := takeEnv("NOTIFY_SOCKET")
	usec := takeEnv("WATCHDOG_USEC")
	pid := takeEnv("WATCHDOG_PID")
	if socket == "" {
		return nil
	}
	m := &Manager{socket: socket}
	// 2^53 µs still fit a Duration.
	if n, err := strconv.ParseInt(usec, 10, 64); err == nil && n > 0 && n < 1<<53 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		m.watchdog = time.Duration(n) * time.Microsecond
	}
	return m
}

func takeEnv(name string) string {
	value := os.Getenv(name)
	_ = os.Unsetenv(name)
	return value
}

// Notify sends state, such as "READY=1". A socket name that begins with @ is
// one in the abstract name space.
func (m *Manager) Notify(ctx context.Context, state string) error {
	if m == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", m.socket)
	if err != nil {
		return fmt.Errorf("reach service manager: %w", err)
	}
	defer conn.Close() //nolint:errcheck // a datagram socket has nothing to lose
	deadline, _ := ctx.Deadline()
	_ = conn.SetWriteDeadline(deadline)
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell service manager %s: %w", state, err)
	}
	return nil
}

// tell notifies, and logs where that does not work: the process is no worse
// for it.
func (m *Manager) tell(logger *slog.Logger, state string) {
	if err := m.Notify(context.Background(), state); err != nil {
		logger.Warn("service manager not told", slog.String("state", state), slog.Any("err", err))
	}
}

// keepAlive feeds the manager's watchdog, at twice the rate it asks for, until
// its result is called.
func (m *Manager) keepAlive(logger *slog.Logger) (done func()) {
	if m == nil || m.watchdog == 0 {
		return func() {}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	tick := time.NewTicker(max(m.watchdog/2, time.Millisecond))
	go func() {
		defer close(ended)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.tell(logger, "WATCHDOG=1")
			case <-stop:
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-ended
	}
}
