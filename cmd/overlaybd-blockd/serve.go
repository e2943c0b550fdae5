// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/blockd"
)

// drainPause is how often a stopping daemon looks whether its devices are
// still in use.
const drainPause = 500 * time.Millisecond

// drainGrace is how long it does: for ever, measured by the patience of
// whoever sent the signal. A second signal, or the service manager, ends it.
const drainGrace = 10 * 365 * 24 * time.Hour

func serve(ctx context.Context, cfg *conf.Config, warnings []string, stderr io.Writer) error {
	log, err := daemon.NewLogger(stderr, cfg.Log.Level, cfg.Log.Format)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		log.Warn("configuration", slog.String("warning", w))
	}
	prepareProcess(cfg, log)

	n, err := wire(ctx, cfg, log)
	if err != nil {
		return err
	}
	g := &daemon.Group{Logger: log, Grace: drainGrace, Manager: daemon.FindManager()}
	services := []daemon.Service{daemon.NewTrimmer().Service(), apiService(n.blockd, cfg.Blockd.Address, log)}
	if cfg.Metrics.BlockdAddress != "" {
		ops := &daemon.Ops{Address: cfg.Metrics.BlockdAddress, Registry: n.metrics, Ready: g.Ready, Pprof: cfg.Metrics.Pprof}
		services = append([]daemon.Service{ops.Service()}, services...)
	}
	return errors.Join(g.Run(ctx, services...), n.close())
}

// prepareProcess sets the limits of the process. None is worth refusing to
// start over.
func prepareProcess(cfg *conf.Config, log *slog.Logger) {
	daemon.MemoryLimit(int64(cfg.Blockd.MemoryLimit))
	if _, err := daemon.RaiseFileLimit(); err != nil {
		log.Warn("file limit not raised", slog.Any("err", err))
	}
	if err := daemon.SetIOFlusher(); err != nil {
		log.Debug("not marked as I/O flusher", slog.Any("err", err))
	}
}

// apiService serves d on the unix socket address. Asked to stop, it goes on
// serving until no device that dies with the process is in use.
func apiService(d *blockd.Daemon, address string, log *slog.Logger) daemon.Service {
	return daemon.Service{Name: "block API", Run: func(ctx context.Context, ready func()) error {
		l, err := daemon.ListenUnix(ctx, address)
		if err != nil {
			return err
		}
		srv := grpc.NewServer()
		blockapi.NewServer(d).Register(srv)
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		log.Info("serving block devices", slog.String("address", address))
		ready()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		err = drain(context.WithoutCancel(ctx), d, log)
		srv.Stop()
		return errors.Join(err, <-served)
	}}
}

// drain removes the devices of d, waiting for those in use.
func drain(ctx context.Context, d *blockd.Daemon, log *slog.Logger) error {
	for said := false; ; said = true {
		err := d.Close(ctx)
		if err == nil || !errors.Is(err, backend.ErrBusy) {
			return err
		}
		if !said {
			log.Warn("devices are in use; stopping when they are released, or at the next signal", slog.Any("err", err))
		}
		time.Sleep(drainPause)
	}
}
