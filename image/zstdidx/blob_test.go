// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// A cachedBlob has a copy of a blob until it is told to drop it.
type cachedBlob struct {
	memBlob
	copied memBlob // nil if there is none
	drops  [][2]int64
}

func (c *cachedBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if c.copied != nil {
		return c.copied.ReadAt(ctx, p, off)
	}
	return c.memBlob.ReadAt(ctx, p, off)
}

func (c *cachedBlob) Drop(_ context.Context, off, n int64) error {
	c.drops = append(c.drops, [2]int64{off, n})
	c.copied = nil
	return nil
}

// TestWrongCopyIsReadAgain: wrong bytes in a cache below are dropped, and the
// read is answered.
func TestWrongCopyIsReadAgain(t *testing.T) {
	want := source()
	z := goStream()(t, want)
	_, index := indexed(t, z, small)
	src := &cachedBlob{memBlob: z, copied: make(memBlob, len(z))}
	b := open(t, src, index)
	p := make([]byte, 250_000)
	if _, err := b.ReadAt(t.Context(), p, 100_000); err != nil || !bytes.Equal(p, want[100_000:350_000]) {
		t.Errorf("ReadAt: %v, or other bytes", err)
	}
	if len(src.drops) != 1 || src.drops[0][1] <= 0 || src.drops[0][1] >= int64(len(z)) {
		t.Errorf("dropped %v of %d bytes, want one part", src.drops, len(z))
	}
}

// TestChangedFile: a file that is not the one of the index is told from it, where
// only what differs is lost.
func TestChangedFile(t *testing.T) {
	want := source()
	z := goStream()(t, want)
	_, index := indexed(t, z, small)
	changed := bytes.Clone(z)
	clear(changed[len(z)/2:])
	b := open(t, memBlob(changed), index)
	p := make([]byte, len(want))
	n, err := b.ReadAt(t.Context(), p, 0)
	if !errors.Is(err, zstdidx.ErrChanged) || n == 0 || !bytes.Equal(p[:n], want[:n]) {
		t.Errorf("read %d bytes, %v; want those before the change, and ErrChanged", n, err)
	}
	if _, err := zstdidx.Open(t.Context(), memBlob(z[1:]), bytes.NewReader(index), int64(len(index))); !errors.Is(err, zstdidx.ErrChanged) {
		t.Errorf("file of another size: got %v, want ErrChanged", err)
	}
}
