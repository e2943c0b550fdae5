// SPDX-License-Identifier: Apache-2.0

package vfs

import (
	"context"
	"fmt"
)

const (
	gatherBytes = 1 << 20   // of small writes that make one
	directBytes = 256 << 10 // from which a write is worth no copy
)

// A Store writes p at byte offset off of a device, as a WriteAt does.
type Store func(ctx context.Context, p []byte, off int64) (int, error)

// A Stream gathers small writes to neighbouring places of a device, such as
// the contents of files one after the other, into large ones.
type Stream struct {
	store Store
	buf   []byte
	off   int64 // where buf belongs
}

// NewStream returns a stream whose writes go to store.
func NewStream(store Store) Stream { return Stream{store: store} }

// ContentStream returns the stream of the content of files to dev, which may be
// a [ContentWriter].
func ContentStream(dev interface {
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
},
) Stream {
	if w, ok := dev.(ContentWriter); ok {
		return NewStream(w.WriteContent)
	}
	return NewStream(dev.WriteAt)
}

// Write stores p at byte offset off, at the latest with the next Flush.
func (s *Stream) Write(ctx context.Context, p []byte, off int64) error {
	if off != s.off+int64(len(s.buf)) || len(s.buf)+len(p) > gatherBytes || len(p) >= directBytes {
		if err := s.Flush(ctx); err != nil {
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

// Flush stores what was gathered.
func (s *Stream) Flush(ctx context.Context) error {
	if len(s.buf) == 0 {
		return nil
	}
	err := s.put(ctx, s.buf, s.off)
	s.off += int64(len(s.buf))
	s.buf = s.buf[:0]
	return err
}

func (s *Stream) put(ctx context.Context, p []byte, off int64) error {
	if _, err := s.store(ctx, p, off); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}
