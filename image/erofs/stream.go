// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"fmt"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

const (
	gatherBytes = 1 << 20   // of small writes that make one
	directBytes = 256 << 10 // from which a write is worth no copy
)

// A stream gathers small writes to neighbouring places of a device, such as
// the contents of files one after the other, into large ones.
type stream struct {
	store func(ctx context.Context, p []byte, off int64) (int, error)
	buf   []byte
	off   int64 // where buf belongs
}

// contentOf returns the stream of the content of files to dev.
func contentOf(dev backend.Writer) stream {
	if w, ok := dev.(vfs.ContentWriter); ok {
		return stream{store: w.WriteContent}
	}
	return stream{store: dev.WriteAt}
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
		return s.put(ctx, p, off)
	}
	s.buf = append(s.buf, p...)
	return nil
}

func (s *stream) flush(ctx context.Context) error {
	if len(s.buf) == 0 {
		return nil
	}
	err := s.put(ctx, s.buf, s.off)
	s.off += int64(len(s.buf))
	s.buf = s.buf[:0]
	return err
}

func (s *stream) put(ctx context.Context, p []byte, off int64) error {
	if _, err := s.store(ctx, p, off); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}
