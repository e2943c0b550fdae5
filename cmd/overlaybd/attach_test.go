// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// fakeDaemon is a block daemon whose devices are names. The device "busy"
// cannot be detached.
type fakeDaemon struct {
	blockapi.Service

	mu      sync.Mutex // guards devices
	devices map[string]blockapi.Attachment
}

func (f *fakeDaemon) Attach(_ context.Context, id, specPath string) (blockapi.Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !filepath.IsAbs(specPath) {
		return blockapi.Attachment{}, errdefs.ErrInvalidArgument
	}
	if _, err := spec.Load(specPath); err != nil {
		return blockapi.Attachment{}, fmt.Errorf("attach %s: %w: %w", id, err, errdefs.ErrNotFound)
	}
	f.devices[id] = blockapi.Attachment{ID: id, SpecPath: specPath, Path: "/dev/sd" + id, Exporter: "tcmu", State: blockapi.Serving}
	return f.devices[id], nil
}

func (f *fakeDaemon) Detach(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id == "busy" {
		return fmt.Errorf("detach %s: mounted: %w", id, errdefs.ErrFailedPrecondition)
	}
	delete(f.devices, id)
	return nil
}

func (f *fakeDaemon) Attachments(context.Context) (all []blockapi.Attachment, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.devices {
		all = append(all, a)
	}
	return all, nil
}

// startDaemon serves s and returns its address.
func startDaemon(t *testing.T, s blockapi.Service) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "b.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	blockapi.NewServer(s).Register(srv)
	go srv.Serve(l) //nolint:errcheck // ends with Stop
	t.Cleanup(srv.Stop)
	return address
}
