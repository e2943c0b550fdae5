// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// The types of file systems that layers may hold.
const (
	Ext4  = "ext4"
	EROFS = "erofs"
)

// A fsType makes and opens file systems of one type.
type fsType struct {
	create func(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error)
	open   func(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error)
}

// fsTypeOf returns the type called name.
func fsTypeOf(name string) (fsType, error) {
	switch name {
	case "", Ext4:
		return fsType{create: createExt4, open: openExt4}, nil
	case EROFS:
		return fsType{create: createEROFS, open: openEROFS}, nil
	}
	return fsType{}, fmt.Errorf("file system %.40q: known are %q", name, []string{Ext4, EROFS})
}

func openExt4(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error) {
	return ext4.Open(ctx, dev)
}

func createExt4(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error) {
	if err := ext4.Format(ctx, dev, ext4.FormatOptions{}); err != nil {
		return nil, err
	}
	f, err := ext4.Open(ctx, dev)
	if err != nil {
		return nil, err
	}
	// Format makes it as mkfs does; the image may have one of its own.
	return f, f.Remove(ctx, ext4.RootIno, "lost+found")
}

func openEROFS(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error) {
	return erofs.Open(ctx, dev)
}

func createEROFS(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error) {
	if err := erofs.Format(ctx, dev, erofs.FormatOptions{}); err != nil {
		return nil, err
	}
	return erofs.Open(ctx, dev)
}
