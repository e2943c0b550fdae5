// SPDX-License-Identifier: Apache-2.0

package blockapi

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi/internal/blockpb"
)

const (
	// restartPatience is how long a call waits for a daemon that has answered
	// before and is now gone: an upgrade or a crash costs its callers a pause,
	// not an error. A daemon that never answered is an error at once.
	restartPatience = 5 * time.Second

	// connectTimeout is how long a daemon that listens may take to say hello.
	// Without it gRPC gives one the pause before the next try, 20 ms, which a
	// busy machine does not keep.
	connectTimeout = 5 * time.Second

	// maxReply bounds an answer in bytes: room for some 10⁵ attachments, where
	// gRPC's own 4 MiB would end at a few thousand.
	maxReply = 64 << 20
)

// A Client is the [Service] on the other side of a unix socket.
type Client struct {
	conn     *grpc.ClientConn
	block    blockpb.BlockClient
	answered atomic.Bool // the daemon has been reached once
}

var _ Service = (*Client)(nil)

// Dial returns a client of the daemon listening on the unix socket with the
// absolute path addr. It connects with the first call.
func Dial(addr string) (*Client, error) {
	if !filepath.IsAbs(addr) {
		return nil, fmt.Errorf("dial block daemon: socket path %q is not absolute", addr)
	}
	// The path goes to a dialer of our own: as part of a target, gRPC would
	// read it as a URL and trip over relative paths, '%' and '?'.
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", addr)
	}
	conn, err := grpc.NewClient("passthrough:///blockd",
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		// gRPC's own backoff grows to two minutes, for which a daemon that is
		// back would stay unreachable.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond,
			},
			MinConnectTimeout: connectTimeout,
		}))
	if err != nil {
		return nil, fmt.Errorf("dial block daemon at %s: %w", addr, err)
	}
	return &Client{conn: conn, block: blockpb.NewBlockClient(conn)}, nil
}

// Close ends the connection; calls in flight fail.
func (c *Client) Close() error { return c.conn.Close() }

// Attach implements [Service].
func (c *Client) Attach(ctx context.Context, id, specPath string) (Attachment, error) {
	var a *blockpb.Attachment
	err := c.call(ctx, func(opt grpc.CallOption) (err error) {
		a, err = c.block.Attach(ctx, &blockpb.AttachRequest{Id: id, SpecPath: specPath}, opt)
		return err
	})
	if err != nil {
		return Attachment{}, err
	}
	return fromProto(a), nil
}

// Detach implements [Service].
func (c *Client) Detach(ctx context.Context, id string) error {
	return c.call(ctx, func(opt grpc.CallOption) error {
		_, err := c.block.Detach(ctx, &blockpb.DetachRequest{Id: id}, opt)
		return err
	})
}

// Attachments implements [Service].
func (c *Client) Attachments(ctx context.Context) ([]Attachment, error) {
	var resp *blockpb.AttachmentsResponse
	err := c.call(ctx, func(opt grpc.CallOption) (err error) {
		resp, err = c.block.Attachments(ctx, &blockpb.AttachmentsRequest{}, opt)
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make([]Attachment, len(resp.GetAttachments()))
	for i, a := range resp.GetAttachments() {
		all[i] = fromProto(a)
	}
	return all, nil
}

// Seal implements [Service].
func (c *Client) Seal(ctx context.Context, specPath, dst string) error {
	return c.call(ctx, func(opt grpc.CallOption) error {
		_, err := c.block.Seal(ctx, &blockpb.SealRequest{SpecPath: specPath, Dst: dst}, opt)
		return err
	})
}

// Expect implements [Service].
func (c *Client) Expect(ctx context.Context, repository string, blobs ...Blob) error {
	req := &blockpb.ExpectRequest{Repository: repository}
	for _, b := range blobs {
		req.Blobs = append(req.Blobs, &blockpb.Blob{Digest: b.Digest.String(), Size: b.Size, Target: b.Target.String(), SpecPath: b.SpecPath})
	}
	return c.call(ctx, func(opt grpc.CallOption) error {
		_, err := c.block.Expect(ctx, req, opt)
		return err
	})
}

// call makes one call and returns its error in its errdefs class. A call that
// the daemon's end cut short is repeated once, as every call is idempotent.
func (c *Client) call(ctx context.Context, rpc func(grpc.CallOption) error) error {
	c.await(ctx)
	var end metadata.MD
	err := rpc(grpc.Trailer(&end))
	if cut := status.Code(err) == codes.Unavailable && len(end[answerKey]) == 0; cut && c.answered.Load() {
		c.await(ctx)
		err = rpc(grpc.Trailer(&end))
	}
	if err == nil || len(end[answerKey]) != 0 {
		c.answered.Store(true)
	}
	return errgrpc.ToNative(err)
}

// await gives a daemon that answered before and is gone now time to come back.
// It reports nothing: the call that follows fails with the reason.
func (c *Client) await(ctx context.Context) {
	if !c.answered.Load() || c.conn.GetState() == connectivity.Ready {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, restartPatience)
	defer cancel()
	for s := c.conn.GetState(); s != connectivity.Ready && s != connectivity.Shutdown; s = c.conn.GetState() {
		c.conn.Connect()
		if !c.conn.WaitForStateChange(ctx, s) {
			return
		}
	}
}
