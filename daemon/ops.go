// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// opsGrace is how long requests in flight may take once the endpoint stops.
const opsGrace = time.Second

// Ops is the HTTP endpoint for those who operate the process: /metrics,
// /healthz (the process answers), /readyz (it serves) and, if wanted,
// /debug/pprof.
type Ops struct {
	Address  string               // "host:port" or the absolute path of a unix socket
	Registry *prometheus.Registry // of /metrics; gains the gauge is_alive
	Ready    func() error         // of /readyz, such as Group.Ready; nil: always
	Pprof    bool
}

// Service returns the endpoint as a service of a group. It belongs first, so
// that it answers while the others start and stop.
func (o *Ops) Service() Service {
	return Service{Name: "ops", Run: o.run}
}

func (o *Ops) run(ctx context.Context, ready func()) error {
	alive := prometheus.NewGauge(prometheus.GaugeOpts{Name: "is_alive", Help: "1 while the process runs."})
	if err := o.Registry.Register(alive); err != nil {
		return err
	}
	defer o.Registry.Unregister(alive)
	alive.Set(1)
	l, err := o.listen(ctx)
	if err != nil {
		return err
	}
	ready()
	return serveHTTP(ctx, o.server(), l)
}

func (o *Ops) listen(ctx context.Context) (net.Listener, error) {
	if strings.HasPrefix(o.Address, "/") {
		return ListenUnix(ctx, o.Address)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", o.Address)
}

func (o *Ops) server() *http.Server {
	return &http.Server{
		Handler:           o.mux(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * time.Minute, // a CPU profile takes 30 s unless asked otherwise
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
}

func (o *Ops) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", o.readyz)
	if o.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func (o *Ops) readyz(w http.ResponseWriter, _ *http.Request) {
	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// serveHTTP serves on l until ctx ends, and returns when every request has.
func serveHTTP(ctx context.Context, srv *http.Server, l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), opsGrace)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close() // a profile, say, that nobody will read
	}
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
