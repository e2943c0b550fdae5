// SPDX-License-Identifier: Apache-2.0

package scsi

import (
	"bytes"
	"encoding/binary"
)

const (
	pageCaching = 0x08
	pageControl = 0x0a
	pageAll     = 0x3f
)

// modePage returns a mode page with its header, or nil if there is no such.
func (u *Unit) modePage(code byte) []byte {
	const writeCache = 0x04
	switch code {
	case pageCaching:
		p := make([]byte, 20)
		p[0], p[1] = pageCaching, 18
		if u.w != nil {
			p[2] = writeCache
		}
		return p
	case pageControl:
		p := make([]byte, 12)
		p[0], p[1] = pageControl, 10
		p[3] = 0x10             // QUEUE ALGORITHM MODIFIER: commands are reordered
		p[8], p[9] = 0xff, 0xff // BUSY TIMEOUT PERIOD: unlimited
		return p
	}
	return nil
}

// modeSense serves MODE SENSE (6) and (10). Nothing can be changed or saved.
func (u *Unit) modeSense(cdb *[16]byte) ([]byte, error) {
	const changeable, saved = 1, 3
	var pages []byte
	switch code, sub := cdb[2]&0x3f, cdb[3]; {
	case cdb[2]>>6 == saved:
		return nil, errSavedPages
	case code == pageAll && (sub == 0 || sub == 0xff):
		pages = append(u.modePage(pageCaching), u.modePage(pageControl)...)
	case sub == 0:
		pages = u.modePage(code)
	}
	if pages == nil {
		return nil, errField
	}
	if cdb[2]>>6 == changeable {
		maskPages(pages)
	}
	return append(u.modeHeader(cdb[0] == opModeSense10, len(pages)), pages...), nil
}

// maskPages makes pages say that no bit of theirs can be changed.
func maskPages(pages []byte) {
	for len(pages) > 0 {
		n := 2 + int(pages[1])
		clear(pages[2:n])
		pages = pages[n:]
	}
}

// modeHeader returns the header before n bytes of pages. There are no block
// descriptors.
func (u *Unit) modeHeader(long bool, n int) []byte {
	const writeProtect = 0x80
	device := byte(0)
	if u.w == nil {
		device = writeProtect
	}
	if !long {
		return []byte{byte(3 + n), 0, device, 0}
	}
	p := binary.BigEndian.AppendUint16(nil, uint16(6+n))
	return append(p, 0, device, 0, 0, 0, 0)
}

// modeSelect accepts pages that are what they were, and refuses all else: the
// write cache cannot be turned off.
func (u *Unit) modeSelect(cdb *[16]byte, data [][]byte) error {
	const savePages, pageFormat = 0x01, 0x10
	n, head := int(cdb[4]), 4
	if cdb[0] == opModeSelect10 {
		n, head = int(binary.BigEndian.Uint16(cdb[7:])), 8
	}
	switch {
	case cdb[1]&pageFormat == 0 || cdb[1]&savePages != 0:
		return errField
	case n == 0:
		return nil
	}
	list, ok := gather(data, n)
	if !ok || n < head {
		return errListLength
	}
	descriptors := int(list[3])
	if head == 8 {
		descriptors = int(binary.BigEndian.Uint16(list[6:]))
	}
	if descriptors != 0 {
		return errParameter
	}
	return u.samePages(list[head:])
}

func (u *Unit) samePages(pages []byte) error {
	for len(pages) > 0 {
		want := u.modePage(pages[0] & 0x3f)
		switch {
		case want == nil:
			return errParameter
		case len(pages) < len(want):
			return errListLength
		case pages[0]&0xc0 != 0 || !bytes.Equal(pages[1:len(want)], want[1:]):
			return errParameter
		}
		pages = pages[len(want):]
	}
	return nil
}
