// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"
)

// endBlob is a blob of which only the end is there.
type endBlob struct {
	end  []byte
	size int64
}

func (e *endBlob) Size() int64  { return e.size }
func (e *endBlob) Close() error { return nil }

func (e *endBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(e.end).ReadAt(p, off-(e.size-int64(len(e.end))))
}

// BenchmarkOpen10GiB: what part of the time that its whole index takes does it
// take to open a file of 10 GiB in blocks of 4 KiB, half of which compresses?
func BenchmarkOpen10GiB(b *testing.B) {
	const stored, blocks = 2048, 10 << 30 >> 12
	lengths := bytes.Repeat(binary.LittleEndian.AppendUint32(nil, stored), blocks)
	h := header{
		flags: trailerFlags, blockSize: 4096, algorithm: LZ4, checksums: true,
		indexOffset: headerSize + stored*blocks, blocks: blocks, size: 10 << 30, indexCRC: checksum(0, lengths),
	}
	src := &endBlob{append(lengths, h.marshal()...), h.indexLimit() + headerSize}
	b.ReportAllocs()
	var took, base time.Duration
	for b.Loop() {
		begun := time.Now()
		r, err := OpenEnd(b.Context(), src, nil)
		if err != nil {
			b.Fatal(err)
		}
		took += time.Since(begun)
		begun = time.Now()
		if err := r.index.reach(b.Context(), src, 0); err != nil {
			b.Fatal(err)
		}
		base += time.Since(begun)
	}
	b.ReportMetric(float64(took)/float64(base), "x-of-whole-index")
}
