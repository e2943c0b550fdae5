// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/binary"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// EROFS is known by a number of 32 bits in its superblock. The superblock of
// ext4 is in the same place, and has a number of inodes there. Durable.
const (
	superblockOff = 1024
	magicErofs    = 0xe0f5e1e2
)

// openFiles opens the file system on v.
func openFiles(ctx context.Context, v backend.Volume) (vfs.Reader, error) {
	head := make([]byte, backend.SectorSize)
	if _, err := v.ReadAt(ctx, head, superblockOff); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(head) == magicErofs {
		return erofs.NewReader(ctx, v)
	}
	return ext4.NewReader(ctx, v)
}
