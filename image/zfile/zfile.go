// SPDX-License-Identifier: Apache-2.0

// Package zfile reads and writes ZFile, the seekable compression of layer
// blobs: the content is cut into blocks of equal size, each compressed on its
// own, and an index says how long each became. A [Reader] is the uncompressed
// content as a [fetcher.Blob]; a [Writer] compresses a stream.
//
// The one thing to know: a Reader never hands out a byte it has not checked.
// A block whose checksum or decompression fails is dropped from the caches
// below, read once more, and only then reported as [ErrCorrupt].
//
// # Format
//
// All integers are little-endian. A file is
//
//	0                header, 512 bytes
//	512              dictionary; never produced
//	512+d            block 0, its CRC as a u32
//	…                block n-1, its CRC
//	index offset     n x u32: stored length of each block, CRC included
//	…                trailer, 512 bytes up to the end of the file
//
// and a header or trailer is
//
//	off  size  field
//	  0    24  magic "ZFile\0\1\0tuji.yyf@Alibaba"
//	 24     4  96, the size of this structure
//	 28     4  digest: CRC of all 512 bytes with this field zero
//	 32     8  flags: 1 header, 2 data, 4 sealed, 8 index fields valid,
//	           16 digest and index CRC present
//	 40     8  index offset, bytes
//	 48     8  index size, blocks
//	 56     8  uncompressed size, bytes
//	 64     4  CRC of the index
//	 72     4  block size, bytes
//	 76     1  algorithm: 1 LZ4 block, 2 zstd frame
//	 78     1  1 if compressed with a dictionary
//	 84     4  dictionary size, bytes
//	 88     1  1 if blocks are followed by CRCs
//
// The rest is zero when written and ignored when read. A header without flag
// 8 leaves the index fields to the trailer. The CRC is CRC-32C without
// inversion, seeded with 100007 for blocks and 0 elsewhere. There is no
// escape for blocks that do not compress: they are stored as LZ4 literals or
// raw zstd blocks, a little longer than they were.
package zfile

import (
	"errors"
	"fmt"
)

// ErrCorrupt is the class of errors for bytes that cannot be what was
// written.
var ErrCorrupt = errors.New("zfile corrupt")

// corruptf returns an ErrCorrupt about byte off of the file.
func corruptf(off int64, format string, args ...any) error {
	return fmt.Errorf("%w at byte %d: %s", ErrCorrupt, off, fmt.Sprintf(format, args...))
}
