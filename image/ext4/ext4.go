// SPDX-License-Identifier: Apache-2.0

// Package ext4 formats and edits ext4 file systems on a [backend.Writer], in
// user space: no root, no mount, no other program.
//
// The one thing to know: an [FS] holds no copy of the file system. It reads
// metadata when an operation needs it, so that a layer can be applied to
// parents whose blocks are fetched on demand, keeps what it changed in a
// bounded cache, and has written all of it only when [FS.Sync] returns. File
// content goes straight to the device, which may be a [vfs.ContentWriter]
// and a [vfs.ContentMapper].
//
// What is written is a pure function of the calls made: there are no clocks
// and no randomness, and space is handed out in the order of the calls, after
// everything that a parent holds. The files of one directory, written one
// after the other, therefore lie beside each other, and a freed block is not
// used again before the end of the volume is reached.
//
// A block that is freed keeps its content: nothing leads to it any more, and
// the layer below holds it anyway.
//
// [Format] makes what the reference's tools make: 4 KiB blocks, 64-bit
// descriptors, no journal, no checksums.
// [Open] also takes file systems made by mkfs.ext4, with or without a journal
// and group checksums (uninit_bg); metadata_csum and what else it does not
// know it refuses. Everything read from the device is checked before use: a
// [CorruptError] names the structure, the place and the field.
package ext4

import (
	"context"
	"errors"
	"fmt"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// RootIno is the root directory. Inode numbers have 32 bits.
const RootIno vfs.Ino = 2

// ErrCorrupt reports that a file system is damaged. The error behind it is a
// [*CorruptError].
var ErrCorrupt = errors.New("corrupt file system")

// ErrUnclean reports that a file system was not unmounted, so that its journal
// or e2fsck has to repair it first.
var ErrUnclean = errors.New("file system was not unmounted cleanly")

// A CorruptError says what of a file system is wrong.
type CorruptError struct {
	Structure string // such as "inode 12"
	Off       int64  // byte offset on the device of the structure
	Field     string // such as i_size
	Reason    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt file system: %s at byte %d: %s: %s", e.Structure, e.Off, e.Field, e.Reason)
}

// Is makes every CorruptError an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corrupt(structure string, off int64, field, format string, args ...any) error {
	return &CorruptError{Structure: structure, Off: off, Field: field, Reason: fmt.Sprintf(format, args...)}
}

// An FS is an open file system.
type FS struct {
	dev    backend.Writer
	sb     superblock
	groups []group
	system zone
	cache  *cache
	out    vfs.Stream
	mapper vfs.ContentMapper // the device, nil if it is none

	data    uint64 // where the search for free data blocks goes on
	meta    run    // blocks set aside for directories, extent nodes and attributes
	inoHint uint32 // no inode is free in groups before this
}

var _ vfs.FileSystem = (*FS)(nil)

// Open opens the file system on dev, which stays the caller's.
func Open(ctx context.Context, dev backend.Writer) (*FS, error) {
	sb, err := readSuperblock(ctx, dev)
	if err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	f := &FS{dev: dev, sb: sb, cache: newCache(dev, int(sb.blockSize)), out: vfs.ContentStream(dev)}
	f.mapper, _ = dev.(vfs.ContentMapper)
	if err := f.readGroups(ctx); err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	if err := f.placeCursor(ctx); err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	return f, nil
}

// Root returns the root directory.
func (f *FS) Root() vfs.Ino { return RootIno }

// Size returns the size of the volume in bytes.
func (f *FS) Size() int64 { return f.sb.off(f.sb.blocks) }

// begin starts an operation: only now may blocks leave the cache, so that an
// operation can keep pointers into it.
func (f *FS) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !f.cache.full() {
		return nil
	}
	if err := f.out.Flush(ctx); err != nil {
		return err
	}
	return f.cache.trim(ctx)
}

// Sync writes everything that was changed and syncs the device.
func (f *FS) Sync(ctx context.Context) error {
	if err := f.out.Flush(ctx); err != nil {
		return fmt.Errorf("sync ext4: %w", err)
	}
	if err := f.putGroups(ctx); err != nil {
		return fmt.Errorf("sync ext4: %w", err)
	}
	if err := f.cache.flush(ctx); err != nil {
		return fmt.Errorf("sync ext4: %w", err)
	}
	return f.dev.Sync(ctx)
}
