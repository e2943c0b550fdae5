// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon"
)

// recorder makes services that write down what happens to them.
type recorder struct{ events []string }

func (r *recorder) service(name string, fail error) daemon.Service {
	return daemon.Service{Name: name, Run: func(ctx context.Context, ready func()) error {
		r.events = append(r.events, "start "+name)
		ready()
		if fail != nil {
			return fail
		}
		<-ctx.Done()
		r.events = append(r.events, "stop "+name)
		return nil
	}}
}

func TestGroupStopsInReverse(t *testing.T) {
	var r recorder
	ctx, cancel := context.WithCancel(t.Context())
	last := daemon.Service{Name: "last", Run: func(ctx context.Context, ready func()) error {
		ready()
		cancel()
		<-ctx.Done()
		return nil
	}}
	g := &daemon.Group{}
	if err := g.Run(ctx, r.service("a", nil), r.service("b", nil), last); err != nil {
		t.Errorf("got %v after an orderly stop", err)
	}
	if got, want := strings.Join(r.events, ", "), "start a, start b, stop b, stop a"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if g.Ready() == nil {
		t.Error("a stopped group is ready")
	}
}

func TestGroupFailureStopsTheRest(t *testing.T) {
	var r recorder
	broken := errors.New("broken")
	err := (&daemon.Group{}).Run(t.Context(), r.service("a", nil), r.service("b", broken))
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "b: broken") {
		t.Errorf("got %v, want the failure with the service's name", err)
	}
	if got, want := strings.Join(r.events, ", "), "start a, start b, stop a"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestGroupGivesUpOnAStuckService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		stuck := daemon.Service{Name: "stuck", Run: func(_ context.Context, ready func()) error {
			ready()
			<-free
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := (&daemon.Group{Grace: time.Second}).Run(ctx, stuck)
		if err == nil || !strings.Contains(err.Error(), "stuck: still running") {
			t.Errorf("got %v, want the stuck service named", err)
		}
		close(free)
	})
}

// TestSignals: SIGUSR1 logs the stacks and nothing ends, SIGTERM stops.
func TestSignals(t *testing.T) {
	logged := make(chan string, 16)
	log := slog.New(slog.NewTextHandler(lines(logged), nil))
	up := make(chan struct{})
	ended := make(chan error)
	go func() {
		s := daemon.Service{Name: "s", Run: func(ctx context.Context, ready func()) error {
			ready()
			close(up)
			<-ctx.Done()
			return nil
		}}
		ended <- (&daemon.Group{Logger: log}).Run(t.Context(), s)
	}()
	<-up
	signal := func(s syscall.Signal) {
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGUSR1)
	for line := range logged {
		if strings.Contains(line, "goroutine stacks") {
			break
		}
	}
	signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("got %v after SIGTERM", err)
	}
}

// lines is an io.Writer that sends what is written.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "d.sock")
	l, err := daemon.ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v; want 0600", st.Mode(), err)
	}
	if _, err := daemon.ListenUnix(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v while another serves, want an error naming the socket", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenUnixTakesOverADeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	dead, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as kill -9 leaves it
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := daemon.ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.ListenUnix(t.Context(), path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v over a file that is no socket, want EADDRINUSE", err)
	}
}

func TestServiceManagerIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	m := daemon.FindManager()
	if os.Getenv("NOTIFY_SOCKET") != "" {
		t.Error("children would inherit NOTIFY_SOCKET")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := daemon.Service{Name: "s", Run: func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		return nil
	}}
	ended := make(chan error)
	go func() { ended <- (&daemon.Group{Manager: m}).Run(ctx, s) }()
	buf := make([]byte, 64)
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		n, err := l.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("service manager was told %q, %v; want %s", buf[:n], err, want)
		}
		cancel()
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

type stats struct {
	Hits int64 `help:"Hits."`
	Used int64 `metric:"gauge"`
	Last string
}

func TestOps(t *testing.T) {
	reg := daemon.NewRegistry()
	c, err := daemon.StatsCollector("test", func() stats { return stats{Hits: 3, Used: 4} })
	if err != nil {
		t.Fatal(err)
	}
	reg.MustRegister(c)
	path := filepath.Join(t.TempDir(), "ops.sock")
	ready := errors.New("still warming up")
	ops := &daemon.Ops{Address: path, Registry: reg, Ready: func() error { return ready }}
	ctx, cancel := context.WithCancel(t.Context())
	up, ended := make(chan struct{}), make(chan error)
	go func() { ended <- ops.Service().Run(ctx, func() { close(up) }) }()
	<-up
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	for _, tc := range []struct {
		path   string
		status int
		want   []string
	}{
		{"/healthz", http.StatusOK, []string{"ok"}},
		{"/readyz", http.StatusServiceUnavailable, []string{"still warming up"}},
		{"/metrics", http.StatusOK, []string{"is_alive 1", "test_hits_total 3", "test_used 4"}},
		{"/debug/pprof/", http.StatusNotFound, nil},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://ops"+tc.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != tc.status {
			t.Errorf("%s: got status %d, want %d", tc.path, resp.StatusCode, tc.status)
		}
		for _, want := range tc.want {
			if !strings.Contains(string(body), want) {
				t.Errorf("%s does not say %q", tc.path, want)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStatsCollectorRefuses(t *testing.T) {
	if _, err := daemon.StatsCollector("x", func() struct{ C chan int } { return struct{ C chan int }{} }); err == nil {
		t.Error("a channel became a metric")
	}
}

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	log, err := daemon.NewLogger(&b, "warn", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("unseen")
	log.Warn("seen", slog.Int("n", 1))
	var line struct {
		Msg string
		N   int
	}
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line.Msg != "seen" || line.N != 1 {
		t.Errorf("got %q, %v; want the one warning", b.String(), err)
	}
	if _, err := daemon.NewLogger(&b, "loud", "json"); err == nil {
		t.Error("an unknown level was taken")
	}
	if _, err := daemon.NewLogger(&b, "warn", "xml"); err == nil {
		t.Error("an unknown format was accepted")
	}
}

// TestLock: a lock is had by one at a time, and the next one waits for it.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "lock")
	first, err := daemon.Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := daemon.Lock(ctx, path); err == nil || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a second lock: %v, want who has it", err)
	}
	got := make(chan error)
	go func() {
		second, err := daemon.Lock(t.Context(), path)
		if err == nil {
			err = second.Close()
		}
		got <- err
	}()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}
