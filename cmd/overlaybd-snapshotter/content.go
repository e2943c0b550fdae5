// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// dialContent returns a connection to containerd at the unix socket address,
// which is made with the first call: containerd may start later, as it asks for
// snapshots.
func dialContent(address string) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", address)
	}
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial containerd at %s: %w", address, err)
	}
	return conn, nil
}
