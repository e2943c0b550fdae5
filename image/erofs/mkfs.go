// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"fmt"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// FormatOptions describe a new file system.
type FormatOptions struct {
	UUID       [16]byte
	VolumeName string // up to 16 bytes
}

// Format makes an empty file system on dev, which must read as zeros but for
// its first block. It takes that one block: the root directory follows the
// superblock, for its number has 16 bits.
func Format(ctx context.Context, dev backend.Writer, opts FormatOptions) error {
	switch {
	case len(opts.VolumeName) > sbIncompat-sbName:
		return fmt.Errorf("format EROFS: volume name of %d bytes: %w", len(opts.VolumeName), syscall.ENAMETOOLONG)
	case dev.Size() < 2*blockSize:
		return fmt.Errorf("format EROFS: device of %d bytes: %w", dev.Size(), syscall.ENOSPC)
	}
	s := superblock{compat: compatChecksum | compatMtime, inodes: 1, blocks: 1, device: dev.Size()}
	const off = superOff + superSize
	s.root = s.nid(off)
	le.PutUint32(s.raw[sbMagic:], superMagic)
	le.PutUint32(s.raw[sbCompat:], s.compat)
	s.raw[sbBlockBits] = blockBits
	copy(s.raw[sbUUID:], opts.UUID[:])
	copy(s.raw[sbName:], opts.VolumeName)

	block := make([]byte, blockSize)
	dots := appendDirents(nil, []dirent{
		{name: []byte("."), nid: s.root, kind: vfs.TypeDirectory},
		{name: []byte(".."), nid: s.root, kind: vfs.TypeDirectory},
	})
	root := inode{mode: syscall.S_IFDIR | 0o755, links: 2, size: int64(len(dots)), layout: layoutInline, extended: true}
	root.put(block[off:], s.root)
	copy(block[off+extendedSize:], dots)
	s.put(block[superOff:])
	if _, err := dev.WriteAt(ctx, block, 0); err != nil {
		return fmt.Errorf("format EROFS: %w", err)
	}
	return nil
}
