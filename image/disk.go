// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// A Disk is an Image with a writable layer on top.
type Disk struct {
	*lsmt.Disk
}

var (
	_ backend.Writer       = (*Disk)(nil)
	_ backend.VectorReader = (*Disk)(nil)
)

// OpenDisk opens the lowers and the upper of v. An upper whose files do not
// exist is created first.
func OpenDisk(ctx context.Context, v *spec.Volume, blobs fetcher.Opener, opts DiskOptions) (*Disk, error) {
	lower, err := openStack(ctx, v, blobs)
	if err != nil {
		return nil, err
	}
	d, err := openDisk(lower, v.Upper, opts)
	if err != nil && lower != nil {
		err = errors.Join(err, lower.Close())
	}
	return d, err
}

// DiskOptions tune a Disk.
type DiskOptions struct {
	// Direct keeps the writable layer's data out of the page cache. An
	// exporter that serves the kernel from user space needs it: a process
	// waiting for pages to be written back that only it can write is stuck.
	Direct bool
}

// openStack opens the lowers of v as one stack, nil if there are none.
func openStack(ctx context.Context, v *spec.Volume, blobs fetcher.Opener) (*lsmt.Stack, error) {
	if len(v.Lowers) == 0 {
		return nil, nil
	}
	i, err := Open(ctx, v, blobs)
	if err != nil {
		return nil, err
	}
	return i.Stack, nil
}

func openDisk(lower *lsmt.Stack, u spec.Upper, opts DiskOptions) (*Disk, error) {
	upper, err := openUpper(u, opts)
	if err != nil {
		return nil, err
	}
	d, err := lsmt.Overlay(lower, upper)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stack writable layer %s: %w", u.Data, err), upper.Close())
	}
	return &Disk{d}, nil
}

// ReadvAt scatters one read over the buffers of iov.
func (d *Disk) ReadvAt(ctx context.Context, iov [][]byte, off int64) (int, error) {
	return readv(ctx, d, iov, off)
}

func openUpper(u spec.Upper, opts DiskOptions) (*lsmt.Writable, error) {
	if u.Target != "" || u.GzipIndex != "" {
		return nil, fmt.Errorf("TurboOCI writable layer %s: %w", u.Target, errors.ErrUnsupported)
	}
	_, err := os.Stat(u.Data)
	if errors.Is(err, os.ErrNotExist) {
		size := int64(u.VSizeGB) << 30
		return lsmt.Create(u.Data, u.Index, lsmt.CreateOptions{VirtualSize: size, Sparse: u.Sparse, Direct: opts.Direct})
	}
	return lsmt.OpenWritable(u.Data, u.Index, lsmt.OpenOptions{Direct: opts.Direct})
}
