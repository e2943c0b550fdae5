// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
)

// Map makes the next n bytes of the file those from byte offset at of the
// layer's target. The device has whole sectors of them; what is left of the
// last block is made zeros, since the block may have been another file's.
func (w *fileWriter) Map(at, n int64) error {
	if err := w.open(); err != nil {
		return err
	}
	bs := w.f.sb.blockSize
	if at < 0 || at%backend.SectorSize != 0 || n < 0 || n > w.f.sb.off(endOfFile-1)-w.off {
		return fmt.Errorf("map %d bytes from %d of the target to inode %d: %w", n, at, w.ino, syscall.EINVAL)
	}
	if err := w.mappable(); err != nil {
		return fmt.Errorf("map %d bytes to inode %d: %w", n, w.ino, err)
	}
	w.mapped = n&(bs-1) != 0
	sectors := roundUp(n, backend.SectorSize)
	done, err := w.place(w.off, roundUp(n, bs), func(off, from, to int64) error {
		have := min(to, sectors) - from
		if err := w.f.mapper.MapContent(w.ctx, off, have, at+from); err != nil {
			return err
		}
		if rest := to - from - have; rest > 0 {
			return w.f.dev.Discard(w.ctx, off+have, rest)
		}
		return nil
	})
	w.off += min(done, n)
	return err
}

// mappable fails where nothing can be mapped: at the end of the file so far, or
// on the device at all. What was written before has gone to the device then,
// lest it comes over what is mapped.
func (w *fileWriter) mappable() error {
	if w.f.mapper == nil || w.inBlock() != 0 {
		return errors.ErrUnsupported
	}
	if err := w.f.mapper.MapContent(w.ctx, 0, 0, 0); err != nil {
		return err // before blocks are taken
	}
	return w.f.out.Flush(w.ctx)
}

// roundUp returns the first multiple of unit, a power of two, that is not less
// than n.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
