// SPDX-License-Identifier: Apache-2.0

// Package backend holds the contract between virtual disks and the kernel: a
// [Volume] (or [Writer]) is the disk's content, an [Exporter] shows it to the
// kernel as a [Device]. Each sub-package is one exporter, and runs the suite
// in backendtest.
//
// The package imports nothing of the project, so that every room may import
// it.
package backend

import (
	"context"
	"errors"
)

// SectorSize is the unit, in bytes, of every offset and length an Exporter
// passes to a Volume.
const SectorSize = 512

// ErrBusy reports that a device is open or mounted.
var ErrBusy = errors.New("device busy")

// ErrGone reports that a device that was there is there no more.
var ErrGone = errors.New("device gone")

// A Volume is the virtual disk behind a block device: a fixed number of
// sectors that can be read at random. A Volume is safe for concurrent use.
type Volume interface {
	// ReadAt fills p from byte offset off under the io.ReaderAt contract. off
	// and len(p) are multiples of SectorSize and lie inside the volume. p may
	// be memory shared with the kernel: the volume only writes to it, and not
	// after ReadAt returns.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)

	// Size returns the capacity in bytes, a multiple of SectorSize.
	Size() int64

	Close() error
}

// A Writer is a Volume that also accepts writes.
type Writer interface {
	Volume

	// WriteAt stores p at byte offset off. A completed write is seen by every
	// later ReadAt; it is durable only after Sync. p must not be retained.
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)

	// Discard makes bytes [off, off+n) read as zeroes and may free their
	// storage (UNMAP, WRITE SAME with UNMAP, FALLOC_FL_PUNCH_HOLE).
	Discard(ctx context.Context, off, n int64) error

	// Sync makes every completed write durable (SYNCHRONIZE CACHE, fsync).
	Sync(ctx context.Context) error
}

// A VectorReader is a Volume that can scatter one read over several buffers
// that together cover the bytes from off without gaps. Optional: an exporter
// asserts it once per device, and otherwise calls ReadAt per buffer.
type VectorReader interface {
	ReadvAt(ctx context.Context, iov [][]byte, off int64) (int, error)
}

// An Exporter presents volumes to the kernel as block devices.
type Exporter interface {
	// Export creates the device id serving v and returns once its node
	// exists. The device owns v and closes it when removed; v stays the
	// caller's when Export fails. Exporting an id that exists fails with
	// fs.ErrExist.
	Export(ctx context.Context, id string, v Volume) (Device, error)
}

// A Device is a live block device.
type Device interface {
	ID() string

	// Path returns the block special file, or the regular file standing in
	// for one: /dev/sdb, /dev/ublkb0, /run/…/<id>/block.
	Path() string

	// Remove refuses new I/O, lets I/O in flight complete, deletes the kernel
	// object and closes the volume. While the device is open or mounted it
	// fails with ErrBusy and changes nothing.
	Remove(ctx context.Context) error

	// Done is closed when the device has stopped for whatever reason; Err
	// then says why, nil after Remove.
	Done() <-chan struct{}
	Err() error
}

// A Recoverer is an Exporter whose devices outlive the process.
type Recoverer interface {
	// Left returns the ids of the devices that an earlier process left behind
	// and nobody serves; their users wait. What is left of devices that were
	// being made or removed, and can have no users, it removes. With an error
	// there may be ids all the same.
	Left(ctx context.Context) (ids []string, err error)

	// Resume serves such a device by v. Requests that the earlier process left
	// unanswered are served again. The device owns v as after Export; when
	// Resume fails the device stays as it was, and v the caller's. It fails with
	// ErrGone where there is none any more.
	Resume(ctx context.Context, id string, v Volume) (Device, error)

	// Discard removes such a device, and fails with ErrBusy while it is in
	// use. A missing one is no error.
	Discard(ctx context.Context, id string) error
}
