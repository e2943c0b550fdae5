// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

// A disk serves requests from a volume.
type disk struct {
	v       backend.Volume
	w       backend.Writer // v, if it can be written to
	size    int64
	buffers *buffers
}

func newDisk(v backend.Volume, b *buffers) *disk {
	w, _ := v.(backend.Writer)
	return &disk{v: v, w: w, size: v.Size(), buffers: b}
}

// do serves the request in s.
func (d *disk) do(ctx context.Context, s *slot) error {
	r := &s.req
	if r.Op != driver.Flush && r.Off+int64(r.Len) > d.size {
		return fmt.Errorf("%d bytes at %d are not in a disk of %d", r.Len, r.Off, d.size)
	}
	if r.Op == driver.Read {
		return d.move(ctx, s, d.read)
	}
	if d.w == nil {
		return unix.EROFS
	}
	switch r.Op {
	case driver.Write:
		return d.move(ctx, s, d.write)
	case driver.Flush:
		return d.w.Sync(ctx)
	case driver.Discard:
		return d.w.Discard(ctx, r.Off, int64(r.Len))
	case driver.WriteZeroes:
		if err := d.w.Discard(ctx, r.Off, int64(r.Len)); err != nil || !r.FUA {
			return err
		}
		return d.w.Sync(ctx)
	}
	return unix.EOPNOTSUPP
}

// move calls f with memory for the request's data.
func (d *disk) move(ctx context.Context, s *slot, f func(context.Context, *slot, []byte) error) error {
	n := s.req.Len
	if n == 0 || n > driver.MaxRequest {
		return fmt.Errorf("request for %d bytes", n)
	}
	if s.mem != nil {
		if n > len(s.mem) {
			return fmt.Errorf("request for %d bytes", n)
		}
		return f(ctx, s, s.mem[:n])
	}
	b := d.buffers.get(n)
	defer d.buffers.put(b)
	return f(ctx, s, b.raw[:n])
}

func (d *disk) read(ctx context.Context, s *slot, p []byte) error {
	if n, err := d.v.ReadAt(ctx, p, s.req.Off); n < len(p) {
		return errors.Join(io.ErrUnexpectedEOF, err)
	}
	if s.mem != nil {
		return nil
	}
	n, err := unix.Pwrite(s.q.char, p, driver.DataOffset(s.q.id, s.tag))
	return whole(n, len(p), err)
}

func (d *disk) write(ctx context.Context, s *slot, p []byte) error {
	if s.mem == nil {
		n, err := unix.Pread(s.q.char, p, driver.DataOffset(s.q.id, s.tag))
		if err := whole(n, len(p), err); err != nil {
			return err
		}
	}
	if n, err := d.w.WriteAt(ctx, p, s.req.Off); n < len(p) {
		return errors.Join(io.ErrShortWrite, err)
	}
	if s.req.FUA {
		return d.w.Sync(ctx)
	}
	return nil
}

// whole returns an error unless the kernel has copied all of a request's data.
func whole(n, want int, err error) error {
	if err == nil && n < want {
		err = fmt.Errorf("the kernel copied %d of %d bytes", n, want)
	}
	return err
}

// result returns what the driver is to know of a request that ended with err.
func result(r *driver.Request, err error) int32 {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return -int32(unix.EOPNOTSUPP)
	case err != nil:
		return -int32(unix.EIO)
	case r.Op == driver.Read || r.Op == driver.Write:
		return int32(r.Len)
	}
	return 0
}
