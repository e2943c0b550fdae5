// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
)

const sector = backend.SectorSize

// A disk gives access to a volume at any byte, as the kernel's page cache does
// for a block device: a volume knows whole sectors only.
type disk struct {
	ctx  context.Context // the device's lifetime; none is derived per request
	v    backend.Volume
	w    backend.Writer // nil if the device is read-only
	size int64

	// partial keeps a write of part of a sector, which reads, changes and
	// writes it, apart from all other writes.
	partial sync.RWMutex
	buffers *buffers
}

func newDisk(ctx context.Context, v backend.Volume, b *buffers) *disk {
	w, _ := v.(backend.Writer)
	return &disk{ctx: ctx, v: v, w: w, size: v.Size(), buffers: b}
}

func aligned(off int64, n int) bool { return (off|int64(n))%sector == 0 }

// readAt fills p from byte off. The range is inside the disk.
func (d *disk) readAt(p []byte, off int64) error {
	if aligned(off, len(p)) {
		return d.readSectors(p, off)
	}
	b := d.buffers.get()
	defer d.buffers.put(b)
	head := int(off % sector)
	span := b.data(roundUp(head + len(p)))
	if err := d.readSectors(span, off-int64(head)); err != nil {
		return err
	}
	copy(p, span[head:])
	return nil
}

func roundUp(n int) int { return (n + sector - 1) / sector * sector }

func (d *disk) readSectors(p []byte, off int64) error {
	n, err := d.v.ReadAt(d.ctx, p, off)
	return full(n, len(p), err)
}

// full turns the result of a read or write into an error unless all of want
// bytes were moved.
func full(n, want int, err error) error {
	switch {
	case n == want && errors.Is(err, io.EOF):
		return nil
	case err == nil && n != want:
		return io.ErrUnexpectedEOF
	default:
		return err
	}
}

// writeAt stores p at byte off. The range is inside the disk.
func (d *disk) writeAt(p []byte, off int64) error {
	if aligned(off, len(p)) {
		d.partial.RLock()
		defer d.partial.RUnlock()
		return d.writeSectors(p, off)
	}
	d.partial.Lock()
	defer d.partial.Unlock()
	return d.patch(off, len(p), func(span []byte) { copy(span, p) })
}

func (d *disk) writeSectors(p []byte, off int64) error {
	n, err := d.w.WriteAt(d.ctx, p, off)
	return full(n, len(p), err)
}

// patch reads the sectors around the n bytes at off, lets change alter those
// bytes, and writes the sectors back.
func (d *disk) patch(off int64, n int, change func(span []byte)) error {
	b := d.buffers.get()
	defer d.buffers.put(b)
	head := int(off % sector)
	span := b.data(roundUp(head + n))
	off -= int64(head)
	if err := d.readSectors(span, off); err != nil {
		return err
	}
	change(span[head : head+n])
	return d.writeSectors(span, off)
}

// zero makes the n bytes at off read as zeroes: whole sectors by Discard, what
// is left at either end by writing. The range is inside the disk.
func (d *disk) zero(off, n int64) error {
	if aligned(off, int(n)) {
		d.partial.RLock()
		defer d.partial.RUnlock()
		return d.w.Discard(d.ctx, off, n)
	}
	d.partial.Lock()
	defer d.partial.Unlock()
	end := off + n
	first, last := (off+sector-1)/sector*sector, end/sector*sector
	if first > last { // inside one sector
		return d.zeroPart(off, end)
	}
	if err := d.zeroPart(off, first); err != nil {
		return err
	}
	if first < last {
		if err := d.w.Discard(d.ctx, first, last-first); err != nil {
			return err
		}
	}
	return d.zeroPart(last, end)
}

// zeroPart zeroes bytes [off, end) of one sector.
func (d *disk) zeroPart(off, end int64) error {
	if off == end {
		return nil
	}
	return d.patch(off, int(end-off), func(span []byte) { clear(span) })
}

func (d *disk) sync() error { return d.w.Sync(d.ctx) }

// errno returns what a user of the device sees of a volume's error. A block
// device has no words for more.
func errno(err error) unix.Errno {
	for _, kept := range []unix.Errno{unix.ENOSPC, unix.EROFS} {
		if errors.Is(err, kept) {
			return kept
		}
	}
	return unix.EIO
}
