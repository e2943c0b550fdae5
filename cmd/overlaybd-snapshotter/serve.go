// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
)

func serve(ctx context.Context, cfg *conf.Config, childArgs, warnings []string, stderr io.Writer) error {
	log, err := daemon.NewLogger(stderr, cfg.Log.Level, cfg.Log.Format)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		log.Warn("configuration", slog.String("warning", w))
	}
	g := &daemon.Group{Logger: log, Manager: daemon.FindManager()}
	services := []daemon.Service{snapshotsService(cfg, childArgs, stderr, log)}
	if cfg.Metrics.SnapshotterAddress != "" {
		ops := &daemon.Ops{Address: cfg.Metrics.SnapshotterAddress, Registry: daemon.NewRegistry(), Ready: g.Ready, Pprof: cfg.Metrics.Pprof}
		services = append([]daemon.Service{ops.Service()}, services...)
	}
	return g.Run(ctx, services...)
}

// snapshotsService serves containerd's snapshots API, over a block daemon that
// it finds or starts first.
func snapshotsService(cfg *conf.Config, childArgs []string, stderr io.Writer, log *slog.Logger) daemon.Service {
	return daemon.Service{Name: "snapshots", Run: func(ctx context.Context, ready func()) (err error) {
		block, err := findBlockd(ctx, cfg, childArgs, stderr, log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, block.release(context.WithoutCancel(ctx), log)) }()

		opts := options(cfg, block, log)
		opts.Converter = converter{cfg, ctx}
		if opts.Attached, err = newFinder(cfg); err != nil {
			return err
		}
		if opts.Attached != nil {
			defer func() { err = errors.Join(err, opts.Attached.Close()) }()
		}
		s, err := snapshotter.New(ctx, opts)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		if err := listen(ctx, cfg.Address, cfg.Turbo.Containerd, s, log, ready); err != nil {
			return err
		}
		return s.ReleaseIdle(context.WithoutCancel(ctx))
	}}
}

func options(cfg *conf.Config, block *blockDaemon, log *slog.Logger) snapshotter.Options {
	return snapshotter.Options{
		Root:             cfg.Root,
		Block:            block,
		Logger:           log,
		RWMode:           snapshotter.Mode(cfg.RWMode),
		WritableLayer:    snapshotter.WritableLayer(cfg.WritableLayer),
		DefaultFS:        cfg.DefaultFS,
		TurboFS:          cfg.Turbo.FS,
		AutoRemoveDevice: cfg.AutoRemoveDevice,
		AsyncRemove:      cfg.AsyncRemove,
		PlainHTTP:        cfg.Registry.PlainHTTP,
	}
}

// listen serves s on the socket address until ctx ends, and returns when the
// calls under way have ended. Its differ reads layers from the socket containerd.
func listen(ctx context.Context, address, containerd string, s *snapshotter.Snapshotter, log *slog.Logger, ready func()) error {
	l, err := daemon.ListenUnix(ctx, address)
	if err != nil {
		return err
	}
	layers, err := dialContent(containerd)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer layers.Close() //nolint:errcheck // nothing is under way any more
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(s))
	diffapi.RegisterDiffServer(srv, diffservice.FromApplierAndComparer(s.Applier(proxy.NewContentStore(layers)), nil))
	healthapi.RegisterHealthServer(srv, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	log.Info("serving snapshots", slog.String("address", address))
	ready()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	srv.GracefulStop()
	return <-served
}
