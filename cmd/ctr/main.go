// SPDX-License-Identifier: Apache-2.0

// Command ctr is containerd's ctr with the commands of this project: rpull
// pulls an image without its layers, obdconv converts one in the content
// store.
package main

import (
	"context"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/ctr/app"
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

// withLease returns a context whose resources containerd keeps until release
// is called, which collects those that nothing else refers to before it
// returns. It works when ctx has ended.
func withLease(ctx context.Context, client *containerd.Client) (leased context.Context, release func() error, err error) {
	service := client.LeasesService()
	// Should the process be killed, containerd cleans up after this time.
	lease, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return ctx, nil, fmt.Errorf("create lease: %w", err)
	}
	return leases.WithLease(ctx, lease.ID), func() error {
		if err := service.Delete(context.WithoutCancel(ctx), lease, leases.SynchronousDelete); err != nil {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
		return nil
	}, nil
}
