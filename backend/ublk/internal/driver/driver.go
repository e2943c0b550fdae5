// SPDX-License-Identifier: Apache-2.0

// Package driver speaks the language of the kernel's ublk driver: commands to
// its control device, and to the character device of each disk. Layouts and
// numbers are those of linux/ublk_cmd.h, in the byte order of the machine.
//
// A disk is made by [Control.Add], described by [Control.SetParams], and shows
// up with [Control.Start] once each queue has asked for requests. It is ended
// by [Control.Stop], and forgotten by [Control.Delete].
package driver

import (
	"encoding/binary"
	"fmt"
	"strconv"
)

// Feature is a set of what a driver can do, or does for a device.
type Feature uint64

// Features that matter here.
const (
	Recovery        Feature = 1 << 3 // users of a device whose server died wait for the next
	RecoveryReissue Feature = 1 << 4 // which is sent what the dead one has not answered
	IoctlEncode     Feature = 1 << 6 // commands are numbered like ioctls
	UserCopy        Feature = 1 << 7 // data is read from and written to the character device
)

// A State is what the kernel says of a device.
type State uint16

// States of a device.
const (
	Dead     State = 0 // not started yet, or stopped
	Live     State = 1
	Quiesced State = 2 // its server died, and its users wait
)

// InfoSize is the length of an encoded [Info].
const InfoSize = 64

// Info describes a device as a whole.
//
//	off  size
//	  0     2  queues                  16     4  process that serves it
//	  2     2  depth of a queue        24     8  features
//	  4     2  state                   32     8  tag, which the driver keeps for us
//	  8     4  bytes of a request
//	 12     4  number
type Info struct {
	Queues     int
	Depth      int // of each queue
	State      State
	MaxRequest int    // in bytes
	Number     uint32 // N in /dev/ublkbN
	PID        int32
	Features   Feature
	Tag        uint64 // tells our devices from others
}

// Encode puts i into p, which has room for InfoSize bytes.
func (i *Info) Encode(p []byte) {
	ne := binary.NativeEndian
	clear(p[:InfoSize])
	ne.PutUint16(p, uint16(i.Queues))
	ne.PutUint16(p[2:], uint16(i.Depth))
	ne.PutUint16(p[4:], uint16(i.State))
	ne.PutUint32(p[8:], uint32(i.MaxRequest))
	ne.PutUint32(p[12:], i.Number)
	ne.PutUint32(p[16:], uint32(i.PID))
	ne.PutUint64(p[24:], uint64(i.Features))
	ne.PutUint64(p[32:], i.Tag)
}

// Limits of the driver.
const (
	MaxQueues  = 4096
	MaxDepth   = 4096
	MaxRequest = 32 << 20 // bytes: the offset in a request has 25 bits
)

// DecodeInfo reads what the kernel says of a device.
func DecodeInfo(p []byte) (Info, error) {
	if len(p) < InfoSize {
		return Info{}, fmt.Errorf("device information of %d bytes, want %d", len(p), InfoSize)
	}
	ne := binary.NativeEndian
	i := Info{
		Queues:     int(ne.Uint16(p)),
		Depth:      int(ne.Uint16(p[2:])),
		State:      State(ne.Uint16(p[4:])),
		MaxRequest: int(ne.Uint32(p[8:])),
		Number:     ne.Uint32(p[12:]),
		PID:        int32(ne.Uint32(p[16:])),
		Features:   Feature(ne.Uint64(p[24:])),
		Tag:        ne.Uint64(p[32:]),
	}
	if i.Queues < 1 || i.Queues > MaxQueues || i.Depth < 1 || i.Depth > MaxDepth || i.MaxRequest < 512 {
		return Info{}, fmt.Errorf("device %d has %d queues of %d requests of %d bytes", i.Number, i.Queues, i.Depth, i.MaxRequest)
	}
	return i, nil
}

// CharPath returns the character device, by which a disk is served.
func CharPath(number uint32) string { return "/dev/ublkc" + strconv.FormatUint(uint64(number), 10) }

// BlockName returns the name of the disk.
func BlockName(number uint32) string { return "ublkb" + strconv.FormatUint(uint64(number), 10) }
