// SPDX-License-Identifier: Apache-2.0

// Package backendtest holds the conformance suites of the backend contract and
// the volumes to test exporters with. An exporter's test is one line:
//
//	backendtest.Run(t, func(t *testing.T) backend.Exporter { … })
//
// and so is a volume's, with [RunVolume].
package backendtest

import (
	"context"
	"fmt"
	"io/fs"
	"sync"

	"github.com/overlaybd-go/overlaybd/backend"
)

// chunkSize is how much of a MemVolume is allocated at once, in bytes.
const chunkSize = 64 << 10

// A MemVolume is a sparse volume in memory. It refuses what the contract does
// not allow an exporter to ask.
type MemVolume struct {
	size int64

	mu     sync.RWMutex // guards all below
	chunks map[int64][]byte
	syncs  int
	closes int
}

var _ backend.Writer = (*MemVolume)(nil)

// NewMemVolume returns a volume of size bytes that reads as zeroes.
func NewMemVolume(size int64) *MemVolume {
	return &MemVolume{size: size, chunks: make(map[int64][]byte)}
}

// Size implements backend.Volume.
func (v *MemVolume) Size() int64 { return v.size }

// Syncs returns how often Sync was called.
func (v *MemVolume) Syncs() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.syncs
}

// Closes returns how often Close was called.
func (v *MemVolume) Closes() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.closes
}

// check must be called with mu held.
func (v *MemVolume) check(op string, off, n int64) error {
	switch {
	case v.closes > 0:
		return fs.ErrClosed
	case (off|n)%backend.SectorSize != 0:
		return fmt.Errorf("%s of %d bytes at %d: not whole sectors", op, n, off)
	case off < 0 || n < 0 || off > v.size || n > v.size-off:
		return fmt.Errorf("%s of %d bytes at %d: outside the volume of %d", op, n, off, v.size)
	}
	return nil
}

// ReadAt implements backend.Volume.
func (v *MemVolume) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if err := v.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		part := p[n:min(len(p), n+int(chunkSize-at%chunkSize))]
		if c := v.chunks[at/chunkSize]; c != nil {
			copy(part, c[at%chunkSize:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	return len(p), nil
}

// WriteAt implements backend.Writer.
func (v *MemVolume) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		c := v.chunks[at/chunkSize]
		if c == nil {
			c = make([]byte, chunkSize)
			v.chunks[at/chunkSize] = c
		}
		n += copy(c[at%chunkSize:], p[n:])
	}
	return len(p), nil
}

// Discard implements backend.Writer.
func (v *MemVolume) Discard(_ context.Context, off, n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.check("discard", off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		next := min(end, off-off%chunkSize+chunkSize)
		if c := v.chunks[off/chunkSize]; next-off == chunkSize {
			delete(v.chunks, off/chunkSize)
		} else if c != nil {
			clear(c[off%chunkSize:][:next-off])
		}
		off = next
	}
	return nil
}

// Sync implements backend.Writer.
func (v *MemVolume) Sync(context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.syncs++
	return v.check("sync", 0, 0)
}

// Close implements backend.Volume.
func (v *MemVolume) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closes++
	return nil
}

// ReadOnly returns v without its write methods.
func ReadOnly(v backend.Volume) backend.Volume { return struct{ backend.Volume }{v} }
