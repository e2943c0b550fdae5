// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"encoding/binary"
	"fmt"
)

// batchSize is the input handed to one worker at a time: 256 KiB take 0.5 ms
// and more to compress, against which starting a goroutine is nothing.
const batchSize = 256 << 10

// A batch is a number of blocks compressed together.
type batch struct {
	h  *header
	c  *compressor
	in []byte // at most batchSize

	off     int64         // of in within the whole input
	out     []byte        // blocks as stored
	lengths []uint32      // of the blocks in out
	err     error         // valid once done
	done    chan struct{} // receives once when compressed
}

func newBatch(h *header, l Level) (*batch, error) {
	c, err := newCompressor(h.algorithm, l)
	return &batch{h: h, c: c, in: make([]byte, 0, batchSize), done: make(chan struct{}, 1)}, err
}

func (b *batch) reset() { b.in, b.out, b.lengths = b.in[:0], b.out[:0], b.lengths[:0] }

func (b *batch) full() bool { return len(b.in) == batchSize }

// fill takes as much of p as there is room for.
func (b *batch) fill(p []byte) int {
	n := min(len(p), batchSize-len(b.in))
	b.in = append(b.in, p[:n]...)
	return n
}

// compress turns in into out.
func (b *batch) compress() {
	defer func() { b.done <- struct{}{} }()
	for in := b.in; len(in) > 0; {
		n := min(len(in), int(b.h.blockSize))
		if b.err = b.block(in[:n]); b.err != nil {
			b.err = fmt.Errorf("compress %d bytes at byte %d: %w", n, b.off+int64(len(b.in)-len(in)), b.err)
			return
		}
		in = in[n:]
	}
}

// block appends the compressed block p to out.
func (b *batch) block(p []byte) (err error) {
	start := len(b.out)
	if b.out, err = b.c.append(b.out, p); err != nil {
		return err
	}
	if b.h.checksums {
		b.out = binary.LittleEndian.AppendUint32(b.out, checksum(blockSeed, b.out[start:]))
	}
	n := len(b.out) - start
	if n > maxBlockSize {
		return fmt.Errorf("%w: %d bytes, which the reference implementation cannot read; use blocks of 32 KiB or less", ErrBlockTooLong, n)
	}
	b.lengths = append(b.lengths, uint32(n))
	return nil
}
