// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"

	"github.com/overlaybd-go/overlaybd/backend"
)

// directBytes is the size from which a write is worth no copy (256 KiB).
const directBytes = 256 << 10

// A stream gathers small writes to neighbouring places of a device, such as
// the contents of small files one after the other, into large ones.
type stream struct {
	dev backend.Writer
	buf []byte
	off int64 // where buf belongs
}

// write stores p at byte offset off, at the latest with the next flush.
func (s *stream) write(ctx context.Context, p []byte, off int64) error {
	if off != s.off+int64(len(s.buf)) || len(s.buf)+len(p) > gatherBytes || len(p) >= directBytes {
		if err := s.flush(ctx); err != nil {
			return err
		}
		s.off = off
	}
	if len(p) >= directBytes {
		s.off = off + int64(len(p))
		return writeFull(ctx, s.dev, p, off)
	}
	s.buf = append(s.buf, p...)
	return nil
}

func (s *stream) flush(ctx context.Context) error {
	if len(s.buf) == 0 {
		return nil
	}
	err := writeFull(ctx, s.dev, s.buf, s.off)
	s.off += int64(len(s.buf))
	s.buf = s.buf[:0]
	return err
}
