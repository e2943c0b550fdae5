// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// clip returns how many of n bytes from byte off lie inside the disk.
func (s *server) clip(off, n uint64) uint64 {
	size := uint64(s.disk.size)
	return min(n, size-min(off, size))
}

// read fills p from byte off as far as the disk reaches.
func (s *server) read(p []byte, off uint64) result {
	p = p[:s.clip(off, uint64(len(p)))]
	if len(p) == 0 {
		return 0
	}
	if status := s.do(func() error { return s.disk.readAt(p, int64(off)) }); status != fuse.OK {
		return failed(unix.Errno(status))
	}
	return result(len(p))
}

func (s *server) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n := int(s.clip(in.Offset, uint64(len(data))))
	switch {
	case s.disk.w == nil:
		return 0, fuse.EROFS
	case len(data) == 0:
		return 0, fuse.OK
	case n == 0:
		return 0, fuse.Status(unix.ENOSPC) // as at the end of a block device
	}
	status := s.do(func() error { return s.disk.writeAt(data[:n], int64(in.Offset)) })
	// The kernel adds no FSYNC to direct writes of a file open with O_SYNC.
	if status == fuse.OK && in.Flags&unix.O_DSYNC != 0 {
		status = s.do(s.disk.sync)
	}
	if status != fuse.OK {
		return 0, status
	}
	return uint32(n), fuse.OK
}

func (s *server) Fsync(_ <-chan struct{}, _ *fuse.FsyncIn) fuse.Status {
	if s.disk.w == nil {
		return fuse.OK
	}
	return s.do(s.disk.sync)
}

// Fallocate takes the two modes that mean discard: a hole, and zeroes.
func (s *server) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	punch := in.Mode == unix.FALLOC_FL_PUNCH_HOLE|keep
	zero := in.Mode&^keep == unix.FALLOC_FL_ZERO_RANGE
	n := s.clip(in.Offset, in.Length)
	switch {
	case s.disk.w == nil:
		return fuse.EROFS
	case !punch && !zero:
		return fuse.Status(unix.EOPNOTSUPP)
	case n < in.Length && in.Mode&keep == 0:
		return fuse.Status(unix.EINVAL) // it would grow the file
	case n == 0:
		return fuse.OK
	}
	return s.do(func() error { return s.disk.zero(int64(in.Offset), int64(n)) })
}

// do runs one request against the volume.
func (s *server) do(op func() error) fuse.Status {
	if s.dev.failed.Load() {
		return fuse.EIO
	}
	if err := op(); err != nil {
		return fuse.Status(errno(err))
	}
	return fuse.OK
}
