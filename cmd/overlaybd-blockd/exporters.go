// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
	"github.com/overlaybd-go/overlaybd/cmd/internal/exporter"
	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon"
	"github.com/overlaybd-go/overlaybd/daemon/blockd"
)

// tcmuLock keeps apart processes that would take each other's devices, which
// the kernel has for all of the machine. %d is the tenant.
const tcmuLock = "/run/overlaybd-tcmu-%d.lock"

// exporters are those of a daemon: the one of new devices, and those whose
// devices an earlier process has left.
type exporters struct {
	kinds  []exporter.Kind
	cfg    *conf.Config
	log    *slog.Logger
	daemon *blockd.Daemon

	open  []backend.Exporter
	locks []io.Closer
}

// start chooses the exporter, makes those that are needed, and starts the
// daemon on them.
func (x *exporters) start(ctx context.Context) error {
	choice, err := exporter.Choose(x.kinds, x.cfg.Blockd.Exporter)
	if err != nil {
		return err
	}
	x.log.Info("exporter chosen", slog.String("exporter", choice.Name), slog.String("reason", choice.Reason()))
	names := x.daemon.Former()
	var former []blockd.Exporter
	for _, k := range x.kinds {
		if k.Name == choice.Name || !slices.Contains(names, k.Name) {
			continue
		}
		if err := k.Available(); err != nil { // then it has no devices, either
			x.log.Warn("devices of a former exporter are gone", slog.String("exporter", k.Name), slog.Any("err", err))
			continue
		}
		e, err := x.make(ctx, k.Name)
		if err != nil {
			return err
		}
		former = append(former, e)
	}
	first, err := x.make(ctx, choice.Name)
	if err != nil {
		return err
	}
	return x.daemon.Start(ctx, first, former...)
}

func (x *exporters) make(ctx context.Context, name string) (blockd.Exporter, error) {
	var e backend.Exporter
	var err error
	switch name {
	case "tcmu":
		e, err = x.makeTCMU(ctx)
	case "ublk":
		e, err = ublk.New(ublk.Options{
			Dir:        filepath.Join(x.cfg.Blockd.StateDir, "ublk"),
			Tenant:     x.tenant(),
			Queues:     x.cfg.Ublk.Queues,
			QueueDepth: x.cfg.Ublk.QueueDepth,
		})
	case "fuse":
		e, err = fuse.New(fuse.Options{Dir: x.cfg.Fuse.Dir, MaxBackground: x.cfg.Fuse.MaxBackground, Logger: x.log})
	default:
		err = errors.ErrUnsupported
	}
	if err != nil {
		return blockd.Exporter{}, fmt.Errorf("exporter %s: %w", name, err)
	}
	x.open = append(x.open, e)
	return blockd.Exporter{Name: name, Exporter: e}, nil
}

// tenant returns the number by which exporters know the tenant; 0 is none.
func (x *exporters) tenant() int { return max(0, x.cfg.Tenant) }

func (x *exporters) makeTCMU(ctx context.Context) (backend.Exporter, error) {
	tenant := x.tenant()
	lock, err := daemon.Lock(ctx, fmt.Sprintf(tcmuLock, tenant))
	if err != nil {
		return nil, fmt.Errorf("another process has the devices of tenant %d: %w", tenant, err)
	}
	x.locks = append(x.locks, lock)
	c := x.cfg.TCMU
	return tcmu.New(tcmu.Options{
		Tenant:         tenant,
		QueueDepth:     c.QueueDepth,
		DataArea:       int64(c.DataArea),
		CommandTimeout: time.Duration(c.CommandTimeout),
		DiskTimeout:    time.Duration(c.DiskTimeout),
		Config:         x.daemon.SpecPath,
		Adopt:          x.daemon.Adopt,
		Logger:         x.log,
	})
}

// close ends the exporters. Devices that can outlive the process are left to
// the next.
func (x *exporters) close() error {
	var errs []error
	for _, e := range x.open {
		switch e := e.(type) {
		case interface{ Abandon() error }:
			errs = append(errs, e.Abandon())
		case io.Closer:
			errs = append(errs, e.Close())
		}
	}
	for _, l := range x.locks {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
