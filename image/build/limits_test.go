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
	took := memory(t, func(w *tar.Writer) error {
		for i := range entries {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s%d/x", deep, i), Mode: 0o644}); err != nil {
				return err
			}
		}
		return nil
	})
	if took > limit {
		t.Errorf("%d MiB in use", took>>20)
	}
}

// TestNamesAreForgotten: a layer may hold any number of names, of a few files.
func TestNamesAreForgotten(t *testing.T) {
	const files, links, limit = 3, 50_000, 6 << 20
	took := memory(t, func(w *tar.Writer) error {
		for i := range files {
			name := fmt.Sprintf("f%d", i)
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644}); err != nil {
				return err
			}
			for k := range links {
				if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: fmt.Sprintf("d%d/%d", i, k), Linkname: name}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if took > limit {
		t.Errorf("%d MiB in use", took>>20)
	}
}

// memory returns how many bytes are in use when all that write writes is
// applied, but for the end of the tar.
func memory(t *testing.T, write func(*tar.Writer) error) int64 {
	t.Helper()
	vol := backendtest.NewMemVolume(64 << 20)
	if err := ext4.Format(t.Context(), vol, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(t.Context(), vol)
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	var after int64
	r, w := io.Pipe()
	var writing sync.WaitGroup
	writing.Go(func() {
		tw := tar.NewWriter(w)
		err := write(tw)
		after = heap()
		w.CloseWithError(errors.Join(err, tw.Close()))
	})
	err = build.Apply(t.Context(), fsys, r)
	r.Close() // lets the writer go if Apply has failed
	writing.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return after - before
}

// heap returns how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
