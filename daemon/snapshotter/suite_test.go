// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestSuite runs containerd's own tests through the socket that containerd
// uses. The name stands for the exceptions that it makes for overlay mounts.
func TestSuite(t *testing.T) {
	need.Root(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := snapshotter.New(ctx, snapshotter.Options{Root: root, Block: newFake(t)})
		if err != nil {
			return nil, nil, err
		}
		client, stop, err := serve(ctx, s, filepath.Join(filepath.Dir(root), "s.sock"))
		if err != nil {
			return nil, nil, err
		}
		return client, func() error { return errors.Join(stop(), s.Close()) }, nil
	})
}

// serve puts s on the unix socket addr and returns a client.
func serve(ctx context.Context, s snapshots.Snapshotter, addr string) (client snapshots.Snapshotter, stop func() error, err error) {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", addr)
	if err != nil {
		return nil, nil, err
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(s))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "overlaybd"), func() error {
		err := conn.Close()
		srv.Stop()
		return errors.Join(err, <-served)
	}, nil
}
