// SPDX-License-Identifier: Apache-2.0

// Command ctr is containerd's ctr with the commands of this project: rpull
// pulls an image without its layers, obdconv converts one in the content
// store.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/urfave/cli/v3"
)

func main() {
	if err := newApp().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ctr:", err)
		os.Exit(1)
	}
}

func newApp() *cli.Command {
	ctr := app.New()
	ctr.Commands = append(ctr.Commands, rpullCommand(), obdconvCommand())
	return ctr
}

// snapshotterFlag is containerd's flag of that name with the default of this
// project.
func snapshotterFlag() cli.Flag {
	return &cli.StringFlag{
		Name:    "snapshotter",
		Usage:   "Snapshotter that serves block images",
		Value:   "overlaybd",
		Sources: cli.EnvVars("CONTAINERD_SNAPSHOTTER"),
	}
}

// leaseTime is longer than any pull or conversion should take.
const leaseTime = 24 * time.Hour

// withClient calls do with a connection to containerd, under a context that
// ends with a signal, and whose resources containerd keeps until do returns. It
// then collects those that nothing else refers to.
func withClient(ctx context.Context, cmd *cli.Command, do func(context.Context, *containerd.Client) error) (err error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client, ctx, cancel, err := commands.NewClient(ctx, cmd)
	if err != nil {
		return err
	}
	defer cancel()
	defer client.Close() //nolint:errcheck // every call has had its answer

	service := client.LeasesService()
	// Should the process be killed, containerd cleans up after this time.
	lease, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return fmt.Errorf("create lease: %w", err)
	}
	defer func() {
		if e := service.Delete(context.WithoutCancel(ctx), lease, leases.SynchronousDelete); e != nil {
			err = errors.Join(err, fmt.Errorf("delete lease %s: %w", lease.ID, e))
		}
	}()
	return do(leases.WithLease(ctx, lease.ID), client)
}
