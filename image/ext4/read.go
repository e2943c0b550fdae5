// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"io"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// ReadAt reads the content of the regular file ino under the io.ReaderAt
// contract.
func (f *FS) ReadAt(ctx context.Context, ino vfs.Ino, p []byte, off int64) (int, error) {
	if err := f.begin(ctx); err != nil {
		return 0, err
	}
	n, err := f.regular(ctx, ino)
	if err != nil {
		return 0, fmt.Errorf("read inode %d: %w", ino, err)
	}
	if off < 0 || off >= n.size() {
		return 0, io.EOF
	}
	if err := f.out.Flush(ctx); err != nil {
		return 0, err
	}
	want := len(p)
	p = p[:min(int64(want), n.size()-off)]
	for done := 0; done < len(p); {
		k, err := f.readPart(ctx, n, p[done:], off+int64(done))
		if err != nil {
			return done, fmt.Errorf("read inode %d: %w", ino, err)
		}
		done += k
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readPart reads the beginning of p, as much as lies together.
func (f *FS) readPart(ctx context.Context, n inode, p []byte, off int64) (int, error) {
	bs := f.sb.blockSize
	if uint64(off/bs) >= endOfFile {
		clear(p)
		return len(p), nil
	}
	m, err := f.lookup(ctx, n, uint64(off/bs))
	if err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), int64(m.n)*bs-off%bs)]
	if m.hole {
		clear(p)
		return len(p), nil
	}
	return len(p), f.readBytes(ctx, p, f.sb.off(m.start)+off%bs)
}

// readBytes fills p from byte offset off of the device, which reads whole
// sectors only.
func (f *FS) readBytes(ctx context.Context, p []byte, off int64) error {
	const mask = backend.SectorSize - 1
	if off&mask == 0 {
		whole := len(p) &^ mask
		if err := readFull(ctx, f.dev, p[:whole], off); err != nil || whole == len(p) {
			return err
		}
		p, off = p[whole:], off+int64(whole)
	}
	head := off & mask
	sector := make([]byte, backend.SectorSize)
	if err := readFull(ctx, f.dev, sector, off-head); err != nil {
		return err
	}
	k := copy(p, sector[head:])
	if k == len(p) {
		return nil
	}
	return f.readBytes(ctx, p[k:], off+int64(k))
}
