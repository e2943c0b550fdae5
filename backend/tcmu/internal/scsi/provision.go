// SPDX-License-Identifier: Apache-2.0

package scsi

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/overlaybd-go/overlaybd/backend"
)

// unmap serves UNMAP. Its parameter list is a header of 8 bytes, with the
// length of what follows the length fields at 0 and 2, and descriptors of 16
// bytes: first block, number of blocks, 4 bytes of nothing.
func (u *Unit) unmap(ctx context.Context, cdb *[16]byte, data [][]byte) error {
	const head, size = 8, 16
	n := int(binary.BigEndian.Uint16(cdb[7:]))
	switch {
	case u.w == nil:
		return errWriteProtect
	case cdb[1]&1 != 0: // ANCHOR
		return errField
	case n == 0:
		return nil
	case n < head:
		return errListLength
	}
	list, ok := gather(data, min(n, head+maxDescriptors*size))
	if !ok {
		return errListLength
	}
	used := int(binary.BigEndian.Uint16(list[2:]))
	if used > len(list)-head || used > maxDescriptors*size {
		return errParameter
	}
	list = list[head:][:used/size*size]
	if err := u.checkDescriptors(list); err != nil {
		return err
	}
	for d := range bytesOf(list, size) {
		off, n, err := u.descriptor(d)
		if err != nil {
			return err
		}
		if err := u.discard(ctx, off, n); err != nil {
			return err
		}
	}
	return nil
}

// checkDescriptors refuses a list as a whole, before any of it is done.
func (u *Unit) checkDescriptors(list []byte) error {
	sum := int64(0)
	for d := range bytesOf(list, 16) {
		_, n, err := u.descriptor(d)
		if err != nil {
			return err
		}
		if sum += n; sum > maxProvision*backend.SectorSize {
			return errParameter
		}
	}
	return nil
}

func (u *Unit) descriptor(d []byte) (off, n int64, err error) {
	return u.bytes(binary.BigEndian.Uint64(d), uint64(binary.BigEndian.Uint32(d[8:])))
}

// bytesOf yields the whole pieces of size bytes in p.
func bytesOf(p []byte, size int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(p) >= size && yield(p[:size]) {
			p = p[size:]
		}
	}
}

func (u *Unit) discard(ctx context.Context, off, n int64) error {
	if n == 0 {
		return nil
	}
	return u.w.Discard(ctx, off, n)
}

// writeSame serves WRITE SAME: one block of data goes to every block of the
// range. Zeroes are a discard, asked for or not, as a discarded block reads as
// zeroes; other data is written even if the initiator allows to unmap.
func (u *Unit) writeSame(ctx context.Context, cdb *[16]byte, data [][]byte) error {
	const anchor, noData = 0x10, 0x01
	if u.w == nil {
		return errWriteProtect
	}
	lba, blocks := blockRange(cdb)
	off, n, err := u.bytes(lba, blocks)
	if err != nil {
		return err
	}
	flags := cdb[1]
	if blocks == 0 || blocks > maxProvision || flags&anchor != 0 || flags>>5 != 0 {
		return errField
	}
	if flags&noData != 0 && cdb[0] == opWriteSame16 {
		return u.discard(ctx, off, n)
	}
	block, ok := gather(data, backend.SectorSize)
	if !ok {
		return errListLength
	}
	if isZero(block) {
		return u.discard(ctx, off, n)
	}
	return u.fill(ctx, block, off, n)
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// fill writes block over and over.
func (u *Unit) fill(ctx context.Context, block []byte, off, n int64) error {
	const most = 256 << 10 // bytes of one write
	p := bytes.Repeat(block, int(min(n, most))/len(block))
	for n > 0 {
		p = p[:min(int64(len(p)), n)]
		done, err := u.w.WriteAt(ctx, p, off)
		if err := whole(done, len(p), err); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}
