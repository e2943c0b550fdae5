// SPDX-License-Identifier: Apache-2.0

// Package scsi is a SCSI disk (SBC-3) over a backend.Volume.
//
// The one thing to know: a disk that can be written to reports a volatile
// write cache, so that the kernel sends SYNCHRONIZE CACHE when it wants data
// to be durable, and one that cannot is write-protected.
package scsi

import (
	"context"
	"crypto/sha256"
	"encoding/binary"

	"github.com/overlaybd-go/overlaybd/backend"
)

// Operation codes.
const (
	opTestUnitReady      = 0x00
	opRequestSense       = 0x03
	opRead6              = 0x08
	opWrite6             = 0x0a
	opInquiry            = 0x12
	opModeSelect6        = 0x15
	opModeSense6         = 0x1a
	opReadCapacity10     = 0x25
	opRead10             = 0x28
	opWrite10            = 0x2a
	opSynchronizeCache10 = 0x35
	opWriteSame10        = 0x41
	opUnmap              = 0x42
	opModeSelect10       = 0x55
	opModeSense10        = 0x5a
	opRead16             = 0x88
	opWrite16            = 0x8a
	opSynchronizeCache16 = 0x91
	opWriteSame16        = 0x93
	opServiceActionIn16  = 0x9e
	opReportLUNs         = 0xa0
	opRead12             = 0xa8
	opWrite12            = 0xaa
)

const (
	// maxTransfer is what one READ or WRITE may move: 1 MiB.
	maxTransfer = 1 << 20 / backend.SectorSize

	// maxProvision is what one UNMAP or WRITE SAME may cover: 1 GiB.
	maxProvision = 1 << 30 / backend.SectorSize

	maxDescriptors = 256 // of one UNMAP
)

// A Unit is one disk. It is safe for concurrent use.
type Unit struct {
	vol    backend.Volume
	w      backend.Writer       // nil: write-protected
	vec    backend.VectorReader // nil: the volume reads into one buffer only
	blocks uint64
	id     [16]byte // unique among the disks of the machine
}

// NewUnit returns a disk with the content of v. Name, which should be unique
// in the world, decides the serial number.
func NewUnit(v backend.Volume, name string) *Unit {
	u := &Unit{vol: v, blocks: uint64(v.Size()) / backend.SectorSize}
	u.w, _ = v.(backend.Writer)
	u.vec, _ = v.(backend.VectorReader)
	sum := sha256.Sum256([]byte(name))
	copy(u.id[:], sum[:])
	return u
}

// Do serves one command. Data is the data-in or data-out buffer. An error is
// a [Sense], or came from the volume.
func (u *Unit) Do(ctx context.Context, cdb *[16]byte, data [][]byte) error {
	switch cdb[0] {
	case opRead6, opRead10, opRead12, opRead16:
		return u.read(ctx, cdb, data)
	case opWrite6, opWrite10, opWrite12, opWrite16:
		return u.write(ctx, cdb, data)
	case opSynchronizeCache10, opSynchronizeCache16:
		return u.synchronize(ctx, cdb)
	case opUnmap:
		return u.unmap(ctx, cdb, data)
	case opWriteSame10, opWriteSame16:
		return u.writeSame(ctx, cdb, data)
	case opModeSelect6, opModeSelect10:
		return u.modeSelect(cdb, data)
	case opTestUnitReady:
		return nil
	}
	return u.report(cdb, data)
}

// report serves the commands that tell of the disk itself.
func (u *Unit) report(cdb *[16]byte, data [][]byte) error {
	var page []byte
	var err error
	most := uint32(1 << 31)
	switch cdb[0] {
	case opInquiry:
		page, err = u.inquiry(cdb)
		most = uint32(binary.BigEndian.Uint16(cdb[3:]))
	case opModeSense6:
		page, err = u.modeSense(cdb)
		most = uint32(cdb[4])
	case opModeSense10:
		page, err = u.modeSense(cdb)
		most = uint32(binary.BigEndian.Uint16(cdb[7:]))
	case opReadCapacity10:
		page, err = u.capacity10(cdb)
	case opServiceActionIn16:
		page, err = u.capacity16(cdb)
		most = binary.BigEndian.Uint32(cdb[10:])
	case opReportLUNs:
		page, err = reportLUNs(cdb)
		most = binary.BigEndian.Uint32(cdb[6:])
	case opRequestSense:
		page = Sense{}.Append(nil)
		most = uint32(cdb[4])
	default:
		return errOpcode
	}
	if err != nil {
		return err
	}
	scatter(data, page[:min(uint64(len(page)), uint64(most))])
	return nil
}

// scatter copies p into the buffers and fills the rest with zeroes.
func scatter(data [][]byte, p []byte) {
	for _, b := range data {
		n := copy(b, p)
		p = p[n:]
		clear(b[n:])
	}
}

// gather returns the first n bytes of the buffers, and false if they hold
// less.
func gather(data [][]byte, n int) ([]byte, bool) {
	p := make([]byte, 0, n)
	for _, b := range data {
		p = append(p, b[:min(len(b), n-len(p))]...)
	}
	return p, len(p) == n
}
