// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A FileVolume is a file, and so outlives the process that writes it.
type FileVolume struct {
	f    *os.File
	size int64
}

var _ backend.Writer = (*FileVolume)(nil)

// OpenFile returns the volume in a file.
func OpenFile(name string) (*FileVolume, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &FileVolume{f, st.Size()}, nil
}

// ReadAt implements backend.Volume.
func (v *FileVolume) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return v.f.ReadAt(p, off)
}

// WriteAt implements backend.Writer.
func (v *FileVolume) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return v.f.WriteAt(p, off)
}

// Discard implements backend.Writer.
func (v *FileVolume) Discard(_ context.Context, off, n int64) error {
	return unix.Fallocate(int(v.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Sync implements backend.Writer.
func (v *FileVolume) Sync(context.Context) error { return v.f.Sync() }

// Size implements backend.Volume.
func (v *FileVolume) Size() int64 { return v.size }

// Close implements backend.Volume.
func (v *FileVolume) Close() error { return v.f.Close() }
