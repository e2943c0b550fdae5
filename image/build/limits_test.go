// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
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

// TestLongPathsAreForgotten: paths can be close to 1 MiB long, and what is
// remembered of them must not add up.
func TestLongPathsAreForgotten(t *testing.T) {
	const names, entries, limit = 800, 400, 32 << 20
	deep := strings.Repeat(strings.Repeat("x", 250)+"/", names)
	vol := backendtest.NewMemVolume(64 << 20)
	if err := ext4.Format(t.Context(), vol, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(t.Context(), vol)
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	var after uint64
	r, w := io.Pipe()
	var writing sync.WaitGroup
	writing.Go(func() {
		tw := tar.NewWriter(w)
		for i := range entries {
			if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s%d/x", deep, i), Mode: 0o644}); err != nil {
				w.CloseWithError(err)
				return
			}
		}
		after = heap() // the last entry but one is applied
		w.CloseWithError(tw.Close())
	})
	err = build.Apply(t.Context(), fsys, r)
	r.Close() // lets the writer go if Apply has failed
	writing.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if after > before+limit {
		t.Errorf("%d MiB in use, %d before", after>>20, before>>20)
	}
}

// heap returns how many bytes are in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
