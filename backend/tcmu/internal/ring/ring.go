// SPDX-License-Identifier: Apache-2.0

// Package ring reads SCSI commands from the memory that a TCM user device
// shares with its handler, and writes the answers back.
//
// The layout is that of <linux/target_core_user.h>, version 2, in the byte
// order of the machine. A mailbox comes first:
//
//	offset  size
//	     0     2  version, 2
//	     2     2  flags; bit 0: commands may be answered in any order
//	     4     4  cmdr_off, of the command ring, in bytes from the mailbox
//	     8     4  cmdr_size, in bytes
//	    12     4  cmd_head, where the kernel will put its next entry
//	    64     4  cmd_tail, up to where entries are answered
//
// An entry lies in the ring without wrapping around its end:
//
//	0     4  length, a multiple of 8, with the operation in the low 3 bits
//	4     2  cmd_id
//	6     1  flags of the kernel
//	7     1  flags of the handler; bit 0: operation unknown
//
// and is, if its operation is a command, read as a request and overwritten by
// an answer:
//
//	request                         answer
//	     8     4  iov_cnt                8     1  SCSI status
//	    12     4  iov_bidi_cnt          12     4  read length, unused
//	    16     4  iov_dif_cnt           16    96  sense data
//	    24     8  cdb_off
//	    48   16n  iov: offset, length; 8 bytes each
//
// Offsets count from the mailbox.
//
// The one thing to know: an answer goes into the oldest entry that has none,
// whichever command that entry was. A command is therefore copied out of the
// ring when it is taken, all but the data it points to.
package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// SenseSize is how many bytes of sense data an answer holds.
const SenseSize = 96

const (
	version    = 2
	outOfOrder = 1 << 0 // mailbox flag

	opMask    = 7
	opPad     = 0
	opCommand = 1

	unknownOp = 1 << 0 // entry flag of the handler

	offFlags    = 2
	offCmdrOff  = 4
	offCmdrSize = 8
	offHead     = 12
	offTail     = 64
	mailboxSize = 68

	entryHeader = 8
	offIovCount = 8
	offCDB      = 24
	offIov      = 48
	iovSize     = 16
	offSense    = 16
	minCommand  = offSense + SenseSize // room for an answer
)

// An Error says that the memory is not a ring, or no longer one.
type Error struct {
	Offset int64 // bytes from the mailbox
	Field  string
	Value  uint64
}

func (e *Error) Error() string {
	return fmt.Sprintf("command ring: %s at byte %d is %#x", e.Field, e.Offset, e.Value)
}

var errTooMany = errors.New("command ring: more answers than commands")

// A Command is one request of the kernel's.
type Command struct {
	ID  uint16
	CDB [16]byte // the descriptor block; shorter ones are followed by anything

	// Data is where the data is, or goes, in order. It is memory of the ring
	// and must be left alone once the command is completed.
	Data [][]byte
}

// A Ring is a command ring. One goroutine at a time may call Next; Complete
// is safe for concurrent use.
type Ring struct {
	mem  []byte
	base uint32 // of the command ring in mem
	size uint32 // of the command ring
	head *uint32
	tail *uint32

	next atomic.Uint32 // position of the first command not taken; moved by Next

	mu sync.Mutex // guards the answers from tail up to next
}

// New returns the ring in mem, which is aligned to 8 bytes, and stays valid as
// long as the ring is used. Entries from the tail on count as not taken.
func New(mem []byte) (*Ring, error) {
	if len(mem) < mailboxSize {
		return nil, &Error{0, "mailbox size", uint64(len(mem))}
	}
	ne := binary.NativeEndian
	if v := ne.Uint16(mem); v != version {
		return nil, &Error{0, "version", uint64(v)}
	}
	if f := ne.Uint16(mem[offFlags:]); f&outOfOrder == 0 {
		return nil, &Error{offFlags, "flags without out-of-order completion", uint64(f)}
	}
	r := &Ring{
		mem:  mem,
		base: ne.Uint32(mem[offCmdrOff:]),
		size: ne.Uint32(mem[offCmdrSize:]),
		head: (*uint32)(unsafe.Pointer(&mem[offHead])),
		tail: (*uint32)(unsafe.Pointer(&mem[offTail])),
	}
	if r.base < mailboxSize || uint64(r.base) > uint64(len(mem)) || r.base%8 != 0 {
		return nil, &Error{offCmdrOff, "cmdr_off", uint64(r.base)}
	}
	if r.size == 0 || uint64(r.size) > uint64(len(mem))-uint64(r.base) || r.size%8 != 0 {
		return nil, &Error{offCmdrSize, "cmdr_size", uint64(r.size)}
	}
	tail := atomic.LoadUint32(r.tail)
	if tail >= r.size || tail%8 != 0 {
		return nil, &Error{offTail, "cmd_tail", uint64(tail)}
	}
	r.next.Store(tail)
	return r, nil
}

// Next takes the next command into c, reusing c.Data. It returns false if
// there is none. After an error the ring is of no use.
func (r *Ring) Next(c *Command) (bool, error) {
	head := atomic.LoadUint32(r.head)
	if head >= r.size || head%8 != 0 {
		return false, &Error{offHead, "cmd_head", uint64(head)}
	}
	for {
		pos := r.next.Load()
		if pos == head {
			return false, nil
		}
		e, err := r.entry(pos, head)
		if err != nil {
			return false, err
		}
		found := false
		switch binary.NativeEndian.Uint32(e) & opMask {
		case opPad:
		case opCommand:
			if err := r.decode(c, e, pos); err != nil {
				return false, err
			}
			found = true
		default:
			e[7] |= unknownOp
		}
		r.next.Store((pos + uint32(len(e))) % r.size)
		if found {
			return true, nil
		}
	}
}

// entry returns the entry at pos, which the kernel has filled up to end.
func (r *Ring) entry(pos, end uint32) ([]byte, error) {
	if end <= pos {
		end = r.size
	}
	ring := r.mem[r.base:][:r.size]
	word := binary.NativeEndian.Uint32(ring[pos:])
	n := word &^ opMask
	if n < entryHeader || n > end-pos || word&opMask == opCommand && n < minCommand {
		return nil, &Error{int64(r.base) + int64(pos), "entry length", uint64(word)}
	}
	return ring[pos:][:n:n], nil
}

func (r *Ring) decode(c *Command, e []byte, pos uint32) error {
	ne := binary.NativeEndian
	at := int64(r.base) + int64(pos)
	c.ID = ne.Uint16(e[4:])

	off := ne.Uint64(e[offCDB:])
	if off >= uint64(len(r.mem)) {
		return &Error{at + offCDB, "cdb_off", off}
	}
	c.CDB = [len(c.CDB)]byte{}
	copy(c.CDB[:], r.mem[off:])

	n := ne.Uint32(e[offIovCount:])
	if uint64(n) > uint64((len(e)-offIov)/iovSize) {
		return &Error{at + offIovCount, "iov_cnt", uint64(n)}
	}
	c.Data = c.Data[:0]
	for i := range int(n) {
		iov := e[offIov+i*iovSize:]
		off, n := ne.Uint64(iov), ne.Uint64(iov[8:])
		if off > uint64(len(r.mem)) || n > uint64(len(r.mem))-off {
			return &Error{at + offIov + int64(i)*iovSize, "iov", off}
		}
		c.Data = append(c.Data, r.mem[off:][:n:n])
	}
	return nil
}

// Complete answers the command id. The kernel sees the answer when it is told
// to look, by a write to the device. Sense is cut at SenseSize.
func (r *Ring) Complete(id uint16, status byte, sense []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	pos, next := atomic.LoadUint32(r.tail), r.next.Load()
	for pos != next {
		e, err := r.entry(pos, next)
		if err != nil {
			return err
		}
		pos = (pos + uint32(len(e))) % r.size
		if binary.NativeEndian.Uint32(e)&opMask == opCommand {
			answer(e, id, status, sense)
			atomic.StoreUint32(r.tail, pos)
			return nil
		}
	}
	return errTooMany
}

func answer(e []byte, id uint16, status byte, sense []byte) {
	binary.NativeEndian.PutUint16(e[4:], id)
	e[7] = 0
	clear(e[entryHeader:minCommand])
	e[entryHeader] = status
	copy(e[offSense:minCommand], sense)
}
