// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
)

// Options are the choices of a Writer.
type Options struct {
	// Algorithm compresses the blocks; LZ4 if zero.
	Algorithm Algorithm

	// Level is how hard they try to make blocks small.
	Level Level

	// BlockSize is what is compressed at a time and the least that a reader
	// decompresses: a power of two from 4 to 64 KiB, 4 KiB if zero. At 64 KiB
	// data that does not compress fails with ErrBlockTooLong.
	BlockSize int

	// Workers is how many blocks are compressed at a time, GOMAXPROCS if
	// zero. It does not change the output. Each takes about 0.5 MiB, and 1.5
	// MiB more with Zstd.
	Workers int

	// NoChecksum leaves out the CRC after each block.
	NoChecksum bool
}

// ErrBlockTooLong reports data that the reference implementation could not
// read back: its reader holds 64 KiB, and a block of 64 KiB that does not
// compress is stored longer than that. Compress with smaller blocks instead.
var ErrBlockTooLong = errors.New("compressed block longer than 64 KiB")

// A Writer compresses a stream into a ZFile. The output is a function of the
// input, the algorithm, the level, the block size and NoChecksum alone, and is written
// strictly in order. LZ4 output is what the reference implementation writes
// without rewriting its header, byte for byte.
type Writer struct {
	w       io.Writer
	h       header
	level   Level
	workers int

	filling *batch   // takes input
	running []*batch // being compressed, oldest first
	idle    []*batch

	off   int64  // bytes written to w
	taken int64  // bytes of input handed to batches
	index []byte // as stored
	err   error  // what ended the Writer: sticky
}

// NewWriter writes the header and returns a Writer to w. The caller must
// Close it, and w afterwards if need be.
func NewWriter(w io.Writer, opts Options) (*Writer, error) {
	if opts.Algorithm == 0 {
		opts.Algorithm = LZ4
	}
	if opts.BlockSize == 0 {
		opts.BlockSize = 4 << 10
	}
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	if bs := opts.BlockSize; bs < 4<<10 || bs > maxBlockSize || bs&(bs-1) != 0 {
		return nil, fmt.Errorf("zfile block size of %d bytes: want a power of two from 4096 to %d", bs, maxBlockSize)
	}
	z := &Writer{w: w, level: opts.Level, workers: opts.Workers, h: header{
		flags:     flagHeader | flagData | flagDigest,
		blockSize: uint32(opts.BlockSize),
		algorithm: opts.Algorithm,
		checksums: !opts.NoChecksum,
	}}
	if err := z.h.check(0); err != nil {
		return nil, err
	}
	var err error
	if z.filling, err = newBatch(&z.h, z.level); err != nil {
		return nil, err
	}
	if err := z.emit(z.h.marshal()); err != nil {
		return nil, err
	}
	return z, nil
}

// Write takes p for compression. An error of the underlying writer may come
// late, and every call after it returns it again.
func (z *Writer) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && z.err == nil {
		m := z.filling.fill(p[n:])
		n += m
		if z.filling.full() {
			z.submit()
		}
	}
	return n, z.err
}

// Close compresses what is left and writes the index and the trailer. It
// does not close the underlying writer.
func (z *Writer) Close() error {
	if z.err != nil {
		return z.err
	}
	z.submit()
	for len(z.running) > 0 {
		z.collect()
	}
	if z.err != nil {
		return z.err
	}
	t := z.h
	t.flags = flagData | flagSealed | flagDigest
	t.indexOffset = uint64(z.off)
	t.blocks = uint64(len(z.index) / crcSize)
	t.size = uint64(z.taken)
	t.indexCRC = checksum(0, z.index)
	if z.emit(z.index) == nil && z.emit(t.marshal()) == nil {
		z.err = fmt.Errorf("zfile writer: %w", fs.ErrClosed)
		return nil
	}
	return z.err
}

// submit starts the compression of the batch being filled and takes another,
// waiting for the oldest one where all workers are busy.
func (z *Writer) submit() {
	b := z.filling
	if len(b.in) == 0 {
		return
	}
	if len(z.running) == z.workers {
		z.collect()
	}
	if z.err != nil {
		return
	}
	b.off = z.taken
	z.taken += int64(len(b.in))
	z.running = append(z.running, b)
	go b.compress()
	if n := len(z.idle); n > 0 {
		z.filling, z.idle = z.idle[n-1], z.idle[:n-1]
		return
	}
	var err error
	if z.filling, err = newBatch(&z.h, z.level); err != nil {
		z.fail(err)
	}
}

// collect waits for the oldest batch and writes it. Only the caller's
// goroutine writes, so that order and errors need no machinery.
func (z *Writer) collect() {
	b := z.running[0]
	z.running = append(z.running[:0], z.running[1:]...)
	<-b.done
	if b.err != nil {
		z.fail(b.err)
		return
	}
	for _, n := range b.lengths {
		z.index = binary.LittleEndian.AppendUint32(z.index, n)
	}
	if z.emit(b.out) == nil {
		b.reset()
		z.idle = append(z.idle, b)
	}
}

// emit writes p to the underlying writer.
func (z *Writer) emit(p []byte) error {
	n, err := z.w.Write(p)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		z.fail(fmt.Errorf("write zfile at byte %d: %w", z.off, err))
	}
	z.off += int64(n)
	return z.err
}

// fail ends the Writer, leaving no batch running.
func (z *Writer) fail(err error) {
	z.err = err
	for _, b := range z.running {
		<-b.done
	}
	z.running = nil
}
