// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"context"
	"errors"
	"io"
)

// Info describes a ZFile.
type Info struct {
	Algorithm      Algorithm `json:"algorithm"`
	BlockSize      int       `json:"blockSize"`      // bytes
	Blocks         int64     `json:"blocks"`         // number of blocks
	Size           int64     `json:"size"`           // uncompressed bytes
	CompressedSize int64     `json:"compressedSize"` // bytes of all blocks with their checksums
	Checksums      bool      `json:"checksums"`      // every block carries a CRC
	Digests        bool      `json:"digests"`        // header, trailer and index carry CRCs
	IndexInHeader  bool      `json:"indexInHeader"`  // the header alone finds the index
}

// Info returns what the header and index of r say.
func (r *Reader) Info() Info {
	return Info{
		Algorithm:      r.h.algorithm,
		BlockSize:      int(r.h.blockSize),
		Blocks:         int64(r.h.blocks),
		Size:           r.size,
		CompressedSize: int64(r.h.indexOffset) - r.h.dataOffset(),
		Checksums:      r.h.checksums,
		Digests:        r.h.flags&flagDigest != 0,
		IndexInHeader:  r.h.flags&flagInfo != 0,
	}
}

// Verify reads and decodes every block, and the trailer where Open did not
// need it. It returns the first fault. progress, which may be nil, hears of
// the uncompressed bytes done.
func (r *Reader) Verify(ctx context.Context, progress func(done, total int64)) error {
	if err := r.verifyTrailer(ctx); err != nil {
		return err
	}
	buf := lend(maxRun)
	defer buf.give()
	for off := int64(0); off < r.size; {
		n, err := r.ReadAt(ctx, buf.b, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		off += int64(n)
		if progress != nil {
			progress(off, r.size)
		}
	}
	return nil
}

// verifyTrailer holds the trailer against the header that Open believed.
func (r *Reader) verifyTrailer(ctx context.Context) error {
	off := r.src.Size() - headerSize
	t, err := readTrailer(ctx, r.src)
	if err != nil {
		return err
	}
	t.flags = r.h.flags
	if t != r.h {
		return corruptf(off, "trailer %+v contradicts header %+v", t, r.h)
	}
	return nil
}
