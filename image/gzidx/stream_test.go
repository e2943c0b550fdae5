// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
)

// What has arrived of a span is read, but for the piece that is not whole.
func TestReadBeforeTheEndOfASpan(t *testing.T) {
	content := sources(t, 1<<20)
	z := gzipped(t, content, 6)
	_, index := build(t, z, gzidx.Options{Span: 2 << 20})
	synctest.Test(t, func(t *testing.T) {
		b := open(t, fetchertest.Stalling{Blob: memBlob(z), N: int64(len(z) / 2)}, index)
		r, err := b.ReadRange(t.Context(), 0, b.Size())
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte)
		go func() {
			p, _ := io.ReadAll(r)
			got <- p
		}()
		p := make([]byte, 4096)
		if _, err := b.ReadAt(t.Context(), p, 100_000); err != nil || !bytes.Equal(p, content[100_000:104_096]) {
			t.Errorf("4096 bytes at 100000: %v, or other bytes", err)
		}
		synctest.Wait()
		if err := b.Close(); err != nil { // ends the reads
			t.Error(err)
		}
		if p := <-got; len(p)%(64<<10) != 0 || len(p) < 256<<10 || !bytes.HasPrefix(content, p) {
			t.Errorf("of half of a file of %d bytes %d were read, or others", len(content), len(p))
		}
	})
}

// A fault in a span is that of the piece it is in, and of those behind.
func TestFaultInAPiece(t *testing.T) {
	content := sources(t, 1<<20)
	z := gzipped(t, content, 6)
	_, index := build(t, z, gzidx.Options{Span: 2 << 20})
	if all, _ := points(t, index); len(all) != 1 {
		t.Fatalf("%d points, want one", len(all))
	}
	for bit := range 8 {
		bad := slices.Clone(z)
		bad[len(z)/2] ^= 1 << bit
		b := open(t, memBlob(bad), index)
		p := make([]byte, len(content))
		n, err := b.ReadAt(t.Context(), p, 0)
		if !errors.Is(err, gzidx.ErrChanged) || n%(64<<10) != 0 || n < 256<<10 || n > 768<<10 || !bytes.Equal(p[:n], content[:n]) {
			t.Errorf("read %d bytes, %v; want those before the fault, and ErrChanged", n, err)
		}
		if n, err := b.ReadAt(t.Context(), p[:10], int64(len(content)-10)); n != 0 || !errors.Is(err, gzidx.ErrChanged) {
			t.Errorf("read %d bytes behind the fault, %v; want ErrChanged", n, err)
		}
	}
}

// By an index without checksums nothing is known before the end of a span.
func TestForeignSpansAreWhole(t *testing.T) {
	content := sources(t, 2<<20)
	z := gzipped(t, content, 6)
	index := foreign(t, z, 1<<20)
	all, _ := points(t, index)
	synctest.Test(t, func(t *testing.T) {
		b := open(t, fetchertest.Stalling{Blob: memBlob(z), N: all[1].en - 1}, index)
		done := make(chan error)
		go func() {
			_, err := b.ReadAt(t.Context(), make([]byte, 10), 0)
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Error("a part of a span without checksums was read:", err)
		default:
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err == nil {
			t.Error("a read was answered by Close")
		}
	})
}
