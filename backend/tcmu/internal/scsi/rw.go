// SPDX-License-Identifier: Apache-2.0

package scsi

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/overlaybd-go/overlaybd/backend"
)

// blockRange returns the blocks that a READ, WRITE, WRITE SAME or SYNCHRONIZE
// CACHE names. The group of the operation code decides where they stand.
func blockRange(cdb *[16]byte) (lba, n uint64) {
	be := binary.BigEndian
	switch cdb[0] >> 5 {
	case 0: // 6 bytes
		if n = uint64(cdb[4]); n == 0 {
			n = 256
		}
		return uint64(be.Uint32(cdb[0:]) & 0x1fffff), n
	case 1, 2: // 10 bytes
		return uint64(be.Uint32(cdb[2:])), uint64(be.Uint16(cdb[7:]))
	case 4: // 16 bytes
		return be.Uint64(cdb[2:]), uint64(be.Uint32(cdb[10:]))
	default: // 12 bytes
		return uint64(be.Uint32(cdb[2:])), uint64(be.Uint32(cdb[6:]))
	}
}

// bytes converts a range of blocks, which must lie on the disk, to bytes.
func (u *Unit) bytes(lba, blocks uint64) (off, n int64, err error) {
	if lba > u.blocks || blocks > u.blocks-lba {
		return 0, 0, errRange
	}
	return int64(lba) * backend.SectorSize, int64(blocks) * backend.SectorSize, nil
}

// transfer returns where a READ or WRITE goes and its buffers, cut to length.
func (u *Unit) transfer(cdb *[16]byte, data [][]byte) (int64, [][]byte, error) {
	lba, blocks := blockRange(cdb)
	off, n, err := u.bytes(lba, blocks)
	if err != nil {
		return 0, nil, err
	}
	protect := cdb[0]>>5 != 0 && cdb[1]>>5 != 0 // RDPROTECT, WRPROTECT
	if blocks > maxTransfer || protect {
		return 0, nil, errField
	}
	data, ok := limit(data, n)
	if !ok {
		return 0, nil, errField
	}
	return off, data, nil
}

// limit cuts the buffers to n bytes. It returns false if they hold less, or
// not whole sectors each.
func limit(data [][]byte, n int64) ([][]byte, bool) {
	for i, b := range data {
		if n == 0 {
			return data[:i], true
		}
		if int64(len(b)) > n {
			data[i] = b[:n]
		}
		if len(data[i])%backend.SectorSize != 0 {
			return nil, false
		}
		n -= int64(len(data[i]))
	}
	return data, n == 0
}

func (u *Unit) read(ctx context.Context, cdb *[16]byte, data [][]byte) error {
	off, data, err := u.transfer(cdb, data)
	if err != nil {
		return err
	}
	if len(data) > 1 && u.vec != nil {
		n, err := u.vec.ReadvAt(ctx, data, off)
		return whole(n, total(data), err)
	}
	for _, b := range data {
		n, err := u.vol.ReadAt(ctx, b, off)
		if err := whole(n, len(b), err); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

func (u *Unit) write(ctx context.Context, cdb *[16]byte, data [][]byte) error {
	if u.w == nil {
		return errWriteProtect
	}
	off, data, err := u.transfer(cdb, data)
	if err != nil {
		return err
	}
	for _, b := range data {
		n, err := u.w.WriteAt(ctx, b, off)
		if err := whole(n, len(b), err); err != nil {
			return err
		}
		off += int64(len(b))
	}
	if fua := cdb[0]>>5 != 0 && cdb[1]&0x08 != 0; fua {
		return u.w.Sync(ctx)
	}
	return nil
}

// synchronize makes everything durable, not only the range it is asked for.
func (u *Unit) synchronize(ctx context.Context, cdb *[16]byte) error {
	lba, n := blockRange(cdb)
	if _, _, err := u.bytes(lba, n); err != nil {
		return err
	}
	if u.w == nil {
		return nil
	}
	return u.w.Sync(ctx)
}

// whole makes an error of a transfer of n bytes where want were due.
func whole(n, want int, err error) error {
	switch {
	case n == want: // io.EOF at the end of the disk is none
		return nil
	case err == nil:
		return io.ErrUnexpectedEOF
	}
	return err
}

func total(data [][]byte) (n int) {
	for _, b := range data {
		n += len(b)
	}
	return n
}
