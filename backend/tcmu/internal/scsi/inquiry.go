// SPDX-License-Identifier: Apache-2.0

package scsi

import (
	"encoding/binary"
	"encoding/hex"
	"math"

	"github.com/overlaybd-go/overlaybd/backend"
)

// Who made the disk, as the reference has it: 8, 16 and 4 bytes.
const (
	vendor   = "LIO-ORG "
	product  = "TCMU device     "
	revision = "0002"
)

// inquiry returns the standard data or a page of vital product data.
func (u *Unit) inquiry(cdb *[16]byte) ([]byte, error) {
	const evpd = 0x01
	switch {
	case cdb[1]&evpd == 0 && cdb[2] == 0:
		return standardInquiry(), nil
	case cdb[1]&evpd == 0:
		return nil, errField
	}
	var body []byte
	switch cdb[2] {
	case 0x00:
		body = []byte{0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2}
	case 0x80:
		body = []byte(u.serial())
	case 0x83:
		body = u.designators()
	case 0xb0:
		body = u.blockLimits()
	case 0xb1:
		body = make([]byte, 60)
		body[1] = 1 // MEDIUM ROTATION RATE: it does not rotate
	case 0xb2:
		body = u.provisioning()
	default:
		return nil, errField
	}
	return append([]byte{0, cdb[2], 0, byte(len(body))}, body...), nil
}

func standardInquiry() []byte {
	p := []byte{
		0, 0,
		0x05, // VERSION: SPC-3
		0x02, // RESPONSE DATA FORMAT
		31,   // bytes that follow
		0, 0,
		0x02, // CMDQUE: commands are queued
	}
	return append(p, vendor+product+revision...)
}

func (u *Unit) serial() string { return hex.EncodeToString(u.id[:]) }

// designators returns a T10 vendor ID and an NAA name of the disk.
func (u *Unit) designators() []byte {
	const ascii, binaryCode, typeT10, typeNAA = 2, 1, 1, 3
	t10 := vendor + u.serial()
	naa := u.id
	naa[0], naa[1], naa[2], naa[3] = 0x60, 0x01, 0x40, 0x50|naa[3]&0x0f // registered by LIO
	p := append([]byte{ascii, typeT10, 0, byte(len(t10))}, t10...)
	return append(append(p, binaryCode, typeNAA, 0, byte(len(naa))), naa[:]...)
}

// blockLimits returns page B0 without its header.
func (u *Unit) blockLimits() []byte {
	be := binary.BigEndian
	p := make([]byte, 60)
	p[0] = 0x01                        // WSNZ: WRITE SAME wants a length
	be.PutUint32(p[4:], maxTransfer)   // MAXIMUM TRANSFER LENGTH
	be.PutUint32(p[8:], maxTransfer)   // OPTIMAL TRANSFER LENGTH
	be.PutUint64(p[32:], maxProvision) // MAXIMUM WRITE SAME LENGTH
	if u.w != nil {
		be.PutUint32(p[16:], maxProvision)   // MAXIMUM UNMAP LBA COUNT
		be.PutUint32(p[20:], maxDescriptors) // MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT
		be.PutUint32(p[24:], 1)              // OPTIMAL UNMAP GRANULARITY
	}
	return p
}

// provisioning returns page B2 without its header.
func (u *Unit) provisioning() []byte {
	const (
		lbpu, lbpws, lbpws10 = 0x80, 0x40, 0x20
		lbprz                = 0x04
		thin                 = 2
	)
	if u.w == nil {
		return make([]byte, 4)
	}
	return []byte{0, lbpu | lbpws | lbpws10 | lbprz, thin, 0}
}

func (u *Unit) lastBlock() uint64 { return max(u.blocks, 1) - 1 }

func (u *Unit) capacity10(*[16]byte) ([]byte, error) {
	p := binary.BigEndian.AppendUint32(nil, uint32(min(u.lastBlock(), math.MaxUint32)))
	return binary.BigEndian.AppendUint32(p, backend.SectorSize), nil
}

func (u *Unit) capacity16(cdb *[16]byte) ([]byte, error) {
	const readCapacity, lbpme, lbprz = 0x10, 0x80, 0x40
	if cdb[1]&0x1f != readCapacity {
		return nil, errOpcode
	}
	p := make([]byte, 32)
	binary.BigEndian.PutUint64(p, u.lastBlock())
	binary.BigEndian.PutUint32(p[8:], backend.SectorSize)
	if u.w != nil {
		p[14] = lbpme | lbprz
	}
	return p, nil
}

// reportLUNs knows unit 0 only.
func reportLUNs(cdb *[16]byte) ([]byte, error) {
	const wellKnown, all = 1, 2
	p := make([]byte, 8, 16)
	switch cdb[2] {
	case 0, all:
		p[3] = 8
		return p[:16], nil
	case wellKnown:
		return p, nil
	}
	return nil, errField
}
