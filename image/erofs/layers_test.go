// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// memBlob is a Blob over bytes in memory.
type memBlob []byte

func (m memBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(m)) {
		n = copy(p, m[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (m memBlob) Size() int64 { return int64(len(m)) }
func (memBlob) Close() error  { return nil }

// farBlob is a Blob that cannot be reached.
type farBlob struct{ memBlob }

func (farBlob) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, errors.New("content of a lower layer was read")
}

// layers is a chain of real ones. While a layer is made, content can be read
// neither of it nor of those below.
type layers struct {
	size   int64
	turbo  bool
	done   []lsmtLayer
	w      *bytes.Buffer // the layer being made
	target []byte        // of it
	b      *lsmt.Builder
}

type lsmtLayer struct{ file, target []byte }

var _ chain = (*layers)(nil)

// newLayers begins a chain of size bytes. Those of turbo layers have targets.
func newLayers(size int64, turbo bool) *layers {
	c := &layers{size: size, turbo: turbo}
	c.begin(nil)
	return c
}

// begin begins a layer over lower.
func (c *layers) begin(lower *lsmt.Stack) {
	c.w, c.target = &bytes.Buffer{}, make([]byte, 512) // as a tar, which begins with a header
	c.b = must(lsmt.Build(c.w, lower, lsmt.BuilderOptions{VirtualSize: c.size, Target: c.turbo}))
}

func (c *layers) top() backend.Writer { return c.b }

// addTarget adds content to the target.
func (c *layers) addTarget(p []byte) (at int64) {
	at = int64(len(c.target))
	c.target = append(append(c.target, p...), make([]byte, -len(p)&511)...)
	return at
}

func (c *layers) next(ctx context.Context) error {
	if err := c.b.Finish(ctx); err != nil {
		return err
	}
	if err := c.b.Close(); err != nil {
		return err
	}
	c.done = append(c.done, lsmtLayer{c.w.Bytes(), c.target})
	lower, err := c.disk(ctx, true)
	if err != nil {
		return err
	}
	c.begin(lower)
	return nil
}

// disk returns the disk of what is done. What is far is the content that lies
// in targets.
func (c *layers) disk(ctx context.Context, far bool) (*lsmt.Stack, error) {
	var all []*lsmt.Layer
	for _, l := range c.done {
		layer, err := lsmt.Open(ctx, memBlob(l.file))
		if c.turbo {
			target := fetcher.Blob(memBlob(l.target))
			if far {
				target = farBlob{l.target}
			}
			layer, err = lsmt.OpenWithTarget(ctx, memBlob(l.file), target)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, layer)
	}
	return lsmt.Merge(all)
}

// flatten returns the disk of what is done as a file.
func (c *layers) flatten(t testing.TB) fileVolume {
	t.Helper()
	return copyDisk(t, must(c.disk(t.Context(), false)), c.size)
}

// copyDisk returns the first n bytes of v as a sparse file.
func copyDisk(t testing.TB, v backend.Volume, n int64) fileVolume {
	t.Helper()
	file := newFile(t, n)
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < n; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), n-off)]
		if n, err := v.ReadAt(t.Context(), p, off); n < len(p) {
			t.Fatal(err)
		}
		if !bytes.Equal(p, zero[:len(p)]) {
			must(file.WriteAt(t.Context(), p, off))
		}
	}
	return file
}

func TestRandomLayers(t *testing.T) {
	for _, turbo := range []bool{false, true} {
		t.Run(map[bool]string{false: "stored", true: "mapped"}[turbo], func(t *testing.T) {
			c := newLayers(256<<20, turbo)
			model := newProgram(*seed+1, *edits).mustRun(t, c, func() chain { return newLayers(256<<20, turbo) })
			v := c.flatten(t)
			if err := model.checkRead(v); err != nil {
				t.Error(err)
			}
			model.kernelAgrees(t, v)
			fsck(t, v)
		})
	}
}
