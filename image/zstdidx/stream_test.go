// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// lastSpan returns where the last span of an index begins in the content and in
// the zstd file.
func lastSpan(x []byte, b *zstdidx.Blob) (start, pos int64) {
	start, _ = b.Span(b.Size() - 1)
	n := int(binary.LittleEndian.Uint32(x[12:]))
	return start, int64(binary.LittleEndian.Uint64(x[headSize+(n-1)*recordSize:]))
}

// big are options that make two spans of what TestReadBeforeTheEndOfASpan reads,
// of which the second begins inside a frame.
var big = zstdidx.Options{Span: 300_000, MaxSpan: 700_000}

// What has arrived of a span is read, but for the piece that is not whole.
func TestReadBeforeTheEndOfASpan(t *testing.T) {
	content := bytes.Join([][]byte{source(), contents()["far"], source()}, nil)
	z := goStream()(t, content)
	_, index := indexed(t, z, big)
	start, pos := lastSpan(index, open(t, memBlob(z), index))
	if start == 0 {
		t.Fatal("one span")
	}
	synctest.Test(t, func(t *testing.T) {
		b := open(t, fetchertest.Stalling{Blob: memBlob(z), N: (pos + int64(len(z))) / 2}, index)
		r, err := b.ReadRange(t.Context(), start, b.Size()-start)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte)
		go func() {
			p, _ := io.ReadAll(r)
			got <- p
		}()
		p := make([]byte, 4096)
		if _, err := b.ReadAt(t.Context(), p, start+10_000); err != nil || !bytes.Equal(p, content[start+10_000:][:4096]) {
			t.Errorf("4096 bytes of the span: %v, or other bytes", err)
		}
		synctest.Wait()
		if err := b.Close(); err != nil { // ends the reads
			t.Error(err)
		}
		if p := <-got; len(p)%pieceSize != 0 || len(p) < pieceSize || !bytes.HasPrefix(content[start:], p) {
			t.Errorf("of half of a span of %d bytes %d were read, or others", len(content)-int(start), len(p))
		}
	})
}

// A fault in a span is that of the piece it is in, and of those behind.
func TestFaultInAPiece(t *testing.T) {
	content := source()
	z := goStream()(t, content)
	_, index := indexed(t, z, zstdidx.Options{})
	if start, _ := lastSpan(index, open(t, memBlob(z), index)); start != 0 {
		t.Fatal("several spans")
	}
	for bit := range 8 {
		bad := bytes.Clone(z)
		bad[len(z)*3/4] ^= 1 << bit
		b := open(t, memBlob(bad), index)
		p := make([]byte, len(content))
		n, err := b.ReadAt(t.Context(), p, 0)
		if !errors.Is(err, zstdidx.ErrChanged) || n%pieceSize != 0 || n < 2*pieceSize || !bytes.Equal(p[:n], content[:n]) {
			t.Errorf("read %d bytes, %v; want those before the fault, and ErrChanged", n, err)
		}
		if n, err := b.ReadAt(t.Context(), p[:10], int64(len(content)-10)); n != 0 || !errors.Is(err, zstdidx.ErrChanged) {
			t.Errorf("read %d bytes behind the fault, %v; want ErrChanged", n, err)
		}
	}
}
