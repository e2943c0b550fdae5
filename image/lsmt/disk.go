// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A Disk is a writable layer over a stack of sealed ones.
type Disk struct {
	lower *Stack // may be nil
	upper *Writable
	size  int64
}

var _ backend.Writer = (*Disk)(nil)

// Overlay puts upper over lower, which may be nil. The disk owns both and
// closes them; they stay the caller's when Overlay fails. An upper of no size
// takes that of lower.
func Overlay(lower *Stack, upper *Writable) (*Disk, error) {
	var size int64
	if lower != nil {
		size = lower.Size()
	}
	if err := upper.inherit(size); err != nil {
		return nil, fmt.Errorf("overlay writable layer: %w", err)
	}
	return &Disk{lower: lower, upper: upper, size: upper.VirtualSize()}, nil
}

// Size returns the size of the volume in bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt reads from the volume under the io.ReaderAt contract.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := clampRead(len(p), off, d.size)
	var spans [16]span // enough for most reads; longer ones go round again
	for p = p[:n]; len(p) > 0; {
		used, err := d.upper.spans(off, int64(len(p)), spans[:])
		if err != nil {
			return 0, err
		}
		for _, s := range spans[:used] {
			if err := d.fill(ctx, p[:s.n], off, s); err != nil {
				return 0, err
			}
			p, off = p[s.n:], off+s.n
		}
	}
	return n, eof
}

// fill reads the bytes p at off, which s covers.
func (d *Disk) fill(ctx context.Context, p []byte, off int64, s span) error {
	switch {
	case s.kind == spanData:
		if n, err := d.upper.data.ReadAt(p, s.at); n < len(p) {
			return fmt.Errorf("read writable layer at %d: %w", s.at, noEOF(err))
		}
	case s.kind == spanHole && d.lower != nil:
		return d.lower.fill(ctx, p, off)
	default:
		clear(p)
	}
	return nil
}

func noEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteAt stores whole sectors at a sector's offset.
func (d *Disk) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	if err := checkRange("write", off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.upper.write(p, off); err != nil {
		return 0, fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return len(p), nil
}

// Discard makes whole sectors read as zeros.
func (d *Disk) Discard(_ context.Context, off, n int64) error {
	if err := checkRange("discard", off, n, d.size); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if err := d.upper.discard(off, n); err != nil {
		return fmt.Errorf("discard %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// checkRange checks a request for n bytes at off of a volume of size bytes.
func checkRange(op string, off, n, size int64) error {
	if (off|n)%SectorSize != 0 || off < 0 || n < 0 || off > size-n {
		return fmt.Errorf("%s %d bytes at %d: not whole sectors inside a volume of %d", op, n, off, size)
	}
	return nil
}

// Sync makes every completed write durable.
func (d *Disk) Sync(ctx context.Context) error { return d.upper.sync(ctx) }

// Close makes the writable layer durable and closes all layers.
func (d *Disk) Close() error {
	err := d.upper.Close()
	if d.lower != nil {
		err = errors.Join(err, d.lower.Close())
	}
	return err
}
