// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/ext4"
)

// A lateContext is cancelled once it has been asked often enough.
type lateContext struct {
	context.Context
	left atomic.Int64
}

func (c *lateContext) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// TestCancelledInHole: a few bytes of tar can stand for a file as large as the
// disk, which must not be sat out.
func TestCancelledInHole(t *testing.T) {
	dir := t.TempDir()
	const size = 4 << 30
	f, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	run(t, "tar", "-cSf", filepath.Join(dir, "l.tar"), "-C", dir, "hole")
	vol := backendtest.NewMemVolume(2 * size)
	if err := ext4.Format(t.Context(), vol, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(t.Context(), vol)
	if err != nil {
		t.Fatal(err)
	}
	r := fileLayer(filepath.Join(dir, "l.tar"))(t)
	defer r.Close()
	ctx := &lateContext{Context: t.Context()}
	ctx.left.Store(200) // much more than the rest asks, much less than pieces of the file
	if err := build.Apply(ctx, fsys, r); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, %d questions left", err, ctx.left.Load())
	}
}
