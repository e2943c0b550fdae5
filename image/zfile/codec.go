// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// An Algorithm is a way to compress blocks. Its values are durable.
type Algorithm uint8

// The algorithms of the format.
const (
	LZ4  Algorithm = 1
	Zstd Algorithm = 2
)

// ParseAlgorithm returns the Algorithm called name.
func ParseAlgorithm(name string) (Algorithm, error) {
	for _, a := range []Algorithm{LZ4, Zstd} {
		if name == a.String() {
			return a, nil
		}
	}
	return 0, fmt.Errorf("unknown compression %q: use %s or %s", name, LZ4, Zstd)
}

// String returns the name that ParseAlgorithm takes.
func (a Algorithm) String() string {
	switch a {
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// MarshalText returns the name of a.
func (a Algorithm) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// bound returns the most bytes that n bytes compress to.
func (a Algorithm) bound(n int) int {
	if a == LZ4 {
		return lz4.CompressBlockBound(n)
	}
	// The formula of libzstd's ZSTD_compressBound for n < 128 KiB.
	return n + n>>8 + (128<<10-n)>>11
}

// decompress fills dst from the block src, which must hold exactly that.
func (a Algorithm) decompress(dst, src []byte) error {
	var n int
	var err error
	if a == LZ4 {
		n, err = lz4.UncompressBlock(src, dst)
	} else {
		n, err = unzstd(dst, src)
	}
	if err == nil && n != len(dst) {
		err = fmt.Errorf("%d bytes decompressed, want %d", n, len(dst))
	}
	return err
}

// decoders holds *zstd.Decoder: 50 KiB and more each, so shared by all
// readers of the process and dropped by the garbage collector when idle.
var decoders sync.Pool

// maxWindow bounds what a zstd frame may ask for, 8 MiB as the format's
// specification recommends; the output is bounded by the block size.
const maxWindow = 8 << 20

func unzstd(dst, src []byte) (int, error) {
	d, ok := decoders.Get().(*zstd.Decoder)
	if !ok {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return 0, err
		}
	}
	defer decoders.Put(d)
	out, err := d.DecodeAll(src, dst[:0:len(dst)])
	if err != nil {
		return 0, err
	}
	if len(out) == len(dst) && &out[0] != &dst[0] {
		copy(dst, out)
	}
	return len(out), nil
}

// A compressor compresses blocks one after the other, each on its own: the
// bytes of a block do not depend on the blocks before it.
type compressor struct {
	lz4  lz4Compressor
	zstd *zstd.Encoder
}

type lz4Compressor interface {
	CompressBlock(src, dst []byte) (int, error)
}

func newCompressor(a Algorithm, l Level) (*compressor, error) {
	if a == LZ4 && l == Best {
		return &compressor{lz4: &lz4.CompressorHC{Level: lz4.Level9}}, nil
	}
	if a == LZ4 {
		return &compressor{lz4: new(lz4.CompressorCCompat)}, nil
	}
	effort := zstd.SpeedDefault
	if l == Best {
		effort = zstd.SpeedBestCompression
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(effort),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(maxBlockSize))
	return &compressor{zstd: e}, err
}

// append appends the compressed src to dst.
func (c *compressor) append(dst, src []byte) ([]byte, error) {
	if c.zstd != nil {
		return c.zstd.EncodeAll(src, dst), nil
	}
	// Room for the bound makes CompressBlock succeed on any input: what does
	// not compress it stores as one run of literals.
	bound := lz4.CompressBlockBound(len(src))
	if cap(dst)-len(dst) < bound {
		dst = append(make([]byte, 0, 2*cap(dst)+bound), dst...)
	}
	n, err := c.lz4.CompressBlock(src, dst[len(dst):len(dst)+bound])
	return dst[:len(dst)+n], err
}
