// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"fmt"
	"io"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// mapBody makes the body at hand, of size bytes, that of the new file ino
// without storing it: it stays where it is in the tar.
//
// A target is read by sectors, and through mmap programs see what follows the end
// of the file in the last one. Where that is not the zeros that it should be, the
// file's last block is stored.
func (a *applier) mapBody(ino vfs.Ino, body io.Reader, size int64) error {
	at := a.tape.pos
	last, err := a.pass(body, size)
	if err != nil {
		return err
	}
	if end := a.tape.pos; end-at != size || at%backend.SectorSize != 0 {
		return fmt.Errorf("a body of %d bytes is bytes [%d, %d) of the tar", size, at, end)
	}
	padding := a.tape.peek(int(-size & (backend.SectorSize - 1)))
	if isZero(padding) {
		last = nil
	}
	return a.mapFile(ino, at, size, last)
}

// pass reads over a body of size bytes, and returns what of it is in its last
// block where that is not a whole one.
func (a *applier) pass(body io.Reader, size int64) (last []byte, err error) {
	for rest := size; ; {
		if err := a.ctx.Err(); err != nil {
			return nil, err
		}
		n, err := fill(body, a.buf[:min(rest, int64(len(a.buf)))])
		if rest -= int64(n); rest == 0 {
			return a.buf[:n][n-int(size&(blockSize-1)):], nil
		}
		if err != nil {
			return nil, noEOF(err)
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// mapFile makes the size bytes from byte offset at of the tar those of the new
// file ino, but for the last of them, which are stored.
func (a *applier) mapFile(ino vfs.Ino, at, size int64, last []byte) (err error) {
	w, err := a.tree.fs.Writer(a.ctx, ino, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if n := size - int64(len(last)); n > 0 {
		if err := w.Map(at, n); err != nil {
			return err
		}
	}
	if len(last) > 0 {
		_, err = w.Write(last)
	}
	return err
}
