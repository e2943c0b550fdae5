// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// directAlign is the alignment, in bytes of memory, that O_DIRECT wants of
	// a buffer on any common device.
	directAlign = 4096

	// bounceSize is how much one direct transfer through a bounce buffer
	// moves, in bytes.
	bounceSize = 1 << 20
)

// A dataFile is the data file of a writable layer. Direct, it bypasses the
// page cache: through aligned memory, which the caller's rarely is.
type dataFile struct {
	*os.File
	direct atomic.Bool // cleared when the file system or device refuses
}

// openData opens or creates a data file. O_DIRECT is a wish: file systems
// without it, such as tmpfs, are used all the same.
func openData(path string, flags int, direct bool) (*dataFile, error) {
	if direct {
		f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o644)
		if err == nil {
			d := &dataFile{File: f}
			d.direct.Store(true)
			return d, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return nil, err
		}
		flags &^= os.O_EXCL // the attempt may have created it
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, err
	}
	return &dataFile{File: f}, nil
}

// ReadAt reads whole sectors at a sector's offset.
func (d *dataFile) ReadAt(p []byte, off int64) (int, error) {
	return d.transfer(p, off, d.File.ReadAt, func(p, bounce []byte, off int64) (int, error) {
		n, err := d.File.ReadAt(bounce, off)
		return copy(p, bounce[:n]), err
	})
}

// WriteAt writes whole sectors at a sector's offset.
func (d *dataFile) WriteAt(p []byte, off int64) (int, error) {
	return d.transfer(p, off, d.File.WriteAt, func(p, bounce []byte, off int64) (int, error) {
		return d.File.WriteAt(bounce[:copy(bounce, p)], off)
	})
}

// transfer moves p by plain where the file is buffered or p fit for direct
// I/O, and piece by piece through a bounce buffer otherwise. What the device
// refuses to do directly it does buffered, from then on.
func (d *dataFile) transfer(p []byte, off int64, plain func([]byte, int64) (int, error),
	bounced func(p, bounce []byte, off int64) (int, error),
) (total int, err error) {
	if !d.direct.Load() || isAligned(p) {
		n, err := plain(p, off)
		if n > 0 || !d.refused(err) {
			return n, err
		}
		return plain(p, off)
	}
	b, _ := bounces.Get().(*[]byte)
	defer bounces.Put(b)
	for len(p) > 0 && err == nil {
		var n int
		piece := p[:min(len(p), bounceSize)]
		n, err = bounced(piece, (*b)[:len(piece)], off)
		if n == 0 && d.refused(err) {
			n, err = bounced(piece, (*b)[:len(piece)], off)
		}
		if n == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
		p, off, total = p[n:], off+int64(n), total+n
	}
	return total, err
}

// refused reports whether err is the device's no to direct I/O, as one with
// 4 KiB sectors says to 512-byte requests. Direct I/O is off after it.
func (d *dataFile) refused(err error) bool {
	if !errors.Is(err, unix.EINVAL) || !d.direct.CompareAndSwap(true, false) {
		return false
	}
	c, err := d.SyscallConn()
	if err != nil {
		return false
	}
	ferr := c.Control(func(fd uintptr) {
		var flags int
		if flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0); err == nil {
			_, err = unix.FcntlInt(fd, unix.F_SETFL, flags&^unix.O_DIRECT)
		}
	})
	return ferr == nil && err == nil
}

func isAligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%directAlign == 0
}

// bounces holds aligned buffers of bounceSize bytes.
var bounces = sync.Pool{New: func() any {
	b := make([]byte, bounceSize+directAlign)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % directAlign
	b = b[skip:][:bounceSize:bounceSize]
	return &b
}}
