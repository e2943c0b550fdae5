// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/binary"
	"fmt"
	"os"
)

// An Op is what a request wants.
type Op uint8

// What a request may want.
const (
	Read        Op = 0
	Write       Op = 1
	Flush       Op = 2
	Discard     Op = 3
	WriteZeroes Op = 5
)

// A Request is what the kernel wants of a disk.
type Request struct {
	Op  Op
	FUA bool  // a write, to be durable when it is answered
	Off int64 // in bytes, of whole sectors, as is Len
	Len int
}

const (
	descSize = 24 // bytes
	flagFUA  = 1 << 13
)

// DecodeRequest reads the descriptor of a request of tag, in memory that the
// kernel writes to:
//
//	off  size
//	  0     4  operation in the lowest byte, flags above
//	  4     4  sectors
//	  8     8  first sector
//	 16     8  address of the data
func DecodeRequest(descs []byte, tag int) (Request, error) {
	if tag < 0 || (tag+1)*descSize > len(descs) {
		return Request{}, fmt.Errorf("tag %d of a queue with memory for %d requests", tag, len(descs)/descSize)
	}
	d := descs[tag*descSize:][:descSize]
	op, sectors, first := binary.NativeEndian.Uint32(d), binary.NativeEndian.Uint32(d[4:]), binary.NativeEndian.Uint64(d[8:])
	const most = 1<<(63-sectorShift) - 1<<32 // so that the end is no more than an offset can be
	r := Request{Op: Op(op), FUA: op&flagFUA != 0}
	if r.Op == Flush {
		return r, nil // the rest is not set
	}
	if first > most {
		return Request{}, fmt.Errorf("request for sector %d", first)
	}
	r.Off, r.Len = int64(first<<sectorShift), int(sectors)<<sectorShift
	return r, nil
}

// DescsSize returns how much memory the descriptors of a queue take, in bytes.
func DescsSize(depth int) int {
	page := os.Getpagesize()
	return (depth*descSize + page - 1) / page * page
}

// DescsOffset returns where the descriptors of a queue are in the character
// device, for mmap.
func DescsOffset(queue int) int64 { return int64(queue) * int64(DescsSize(MaxDepth)) }

// DataOffset returns where the data of a request is in the character device,
// if it has UserCopy.
func DataOffset(queue, tag int) int64 {
	const (
		start      = 0x80000000
		tagShift   = 25
		queueShift = tagShift + 16
	)
	return start + int64(queue)<<queueShift + int64(tag)<<tagShift
}

// NoDevice is the result, negative, of a command that is over because the
// device is.
const NoDevice = -19

// Commands to the character device of a disk, that ask for the next request of
// a tag; the second also answers the last one.
const (
	fetch          = 0x20
	commitAndFetch = 0x21

	ioCommandSize = 16 // bytes
)

// Fetches returns the numbers of the commands that ask for a request.
func Fetches(f Feature) (first, next uint32) {
	if f&IoctlEncode == 0 {
		return fetch, commitAndFetch
	}
	return ioctl(readWrite, fetch, ioCommandSize), ioctl(readWrite, commitAndFetch, ioCommandSize)
}

// EncodeFetch fills in the data of such a command: the result is that of the
// last request, and addr where the kernel may copy the data of the next,
// unless it has UserCopy.
//
//	off  size
//	  0     2  queue
//	  2     2  tag
//	  4     4  result
//	  8     8  address
func EncodeFetch(p []byte, queue, tag int, result int32, addr uintptr) {
	ne := binary.NativeEndian
	ne.PutUint16(p, uint16(queue))
	ne.PutUint16(p[2:], uint16(tag))
	ne.PutUint32(p[4:], uint32(result))
	ne.PutUint64(p[8:], uint64(addr))
}

// The directions of an ioctl, and its number.
const (
	readOnly  = 2
	readWrite = 3
)

func ioctl(dir, nr, size uint32) uint32 { return dir<<30 | size<<16 | 'u'<<8 | nr }
