// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"io"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// ApplyTarget is Apply, but leaves the content of files in the tar.
func ApplyTarget(ctx context.Context, fsys vfs.FileSystem, layer io.Reader) error {
	a := newApplier(ctx, fsys, layer)
	a.target = true
	return a.run()
}
