// SPDX-License-Identifier: Apache-2.0

// Package uring speaks io_uring by raw system calls, as far as the ublk driver
// needs it: commands to a driver, and reads. The layout of the memory shared
// with the kernel is that of linux/io_uring.h:
//
//	submission, 128 bytes           completion, 16 bytes
//	off  size                       off  size
//	  0     1  opcode                 0     8  user data
//	  4     4  file descriptor        8     4  result
//	  8     8  offset, or command    12     4  flags
//	 16     8  address
//	 24     4  length
//	 32     8  user data
//	 48    80  the command's data
//
// All numbers have the byte order of the machine.
package uring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	opRead    = 22
	opCommand = 46

	setupSubmitAll    = 1 << 7
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	// One thread has the ring, and the kernel works for it only when that
	// thread asks: no interrupts, and completions come in batches.
	setup = setupSubmitAll | setupSQE128 | setupSingleIssuer | setupDeferTaskrun

	enterGetEvents = 1 << 0

	offRings = 0 // of the mapping of both rings, since Linux 5.4
	offSQEs  = 0x10000000

	sqeSize = 128
	cqeSize = 16

	// MaxCommand is how long a command's data may be, in bytes.
	MaxCommand = 80
)

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32

	_  [3]uint32
	sq struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32

		_ uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32

		_ uint64
	}
}

// A Ring belongs to the thread that made it: only that thread may call its
// methods, Close excepted.
type Ring struct {
	fd     int
	rings  []byte // the heads and tails, and the completions
	sqes   []byte
	sqTail *uint32
	cqHead *uint32
	cqTail *uint32
	cqes   []byte

	sqMask, cqMask uint32
	next           uint32 // tail of the submissions that the kernel does not know yet
	queued         uint32 // how many those are
}

// New makes a ring for n submissions at a time.
func New(n int) (*Ring, error) {
	p := params{flags: setup}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(n), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("make an io_uring of %d entries: %w", n, explain(errno))
	}
	r := &Ring{fd: int(fd)}
	if err := r.mmap(&p); err != nil {
		return nil, errors.Join(fmt.Errorf("map an io_uring: %w", err), r.Close())
	}
	return r, nil
}

// explain adds what is likely to be behind an error of the system call.
func explain(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS:
		return fmt.Errorf("the kernel has no io_uring: %w", errno)
	case unix.EPERM:
		return fmt.Errorf("forbidden, by kernel.io_uring_disabled or a system call filter: %w", errno)
	case unix.EINVAL:
		return fmt.Errorf("the kernel is older than Linux 6.1: %w", errno)
	}
	return errno
}

func (r *Ring) mmap(p *params) (err error) {
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+cqeSize*p.cqEntries)
	if r.rings, err = r.shared(offRings, int(size)); err != nil {
		return err
	}
	if r.sqes, err = r.shared(offSQEs, int(sqeSize*p.sqEntries)); err != nil {
		return err
	}
	r.sqTail = r.word(p.sq.tail)
	r.cqHead, r.cqTail = r.word(p.cq.head), r.word(p.cq.tail)
	r.sqMask, r.cqMask = *r.word(p.sq.mask), *r.word(p.cq.mask)
	r.cqes = r.rings[p.cq.cqes:][:cqeSize*p.cqEntries]
	r.next = *r.sqTail
	for i := range p.sqEntries { // submissions are taken in the order they lie in
		*r.word(p.sq.array + 4*i) = i
	}
	return nil
}

func (r *Ring) shared(off int64, size int) ([]byte, error) {
	return unix.Mmap(r.fd, off, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }

// submission returns the next one, cleared. The caller sees to it that there
// are never more than the ring is made for between two calls of Enter.
func (r *Ring) submission(opcode byte, fd int, user uint64) []byte {
	e := r.sqes[sqeSize*(r.next&r.sqMask):][:sqeSize]
	clear(e)
	e[0] = opcode
	binary.NativeEndian.PutUint32(e[4:], uint32(fd))
	binary.NativeEndian.PutUint64(e[32:], user)
	r.next++
	r.queued++
	return e
}

// Command queues a command to the driver behind fd and returns its data, to be
// filled in. The completion bears user.
func (r *Ring) Command(fd int, op uint32, user uint64) []byte {
	e := r.submission(opCommand, fd, user)
	binary.NativeEndian.PutUint32(e[8:], op)
	return e[sqeSize-MaxCommand:]
}

// Read queues a read of a word from fd, whose completion bears user. The word
// must stay where it is until then.
func (r *Ring) Read(fd int, word *uint64, user uint64) {
	e := r.submission(opRead, fd, user)
	binary.NativeEndian.PutUint64(e[16:], uint64(uintptr(unsafe.Pointer(word))))
	binary.NativeEndian.PutUint32(e[24:], uint32(unsafe.Sizeof(*word)))
}

// A Mode is what Enter does about completions.
type Mode int

// Modes of Enter.
const (
	Submit Mode = iota // nothing: what has happened is not looked at
	Look               // takes what there is
	Wait               // waits for one, or for a signal
)

// Enter submits what is queued, then does what m says.
func (r *Ring) Enter(m Mode) error {
	atomic.StoreUint32(r.sqTail, r.next)
	var least, flags uintptr
	if m != Submit {
		flags = enterGetEvents
	}
	if m == Wait {
		least = 1
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.queued), least, flags, 0, 0)
		switch errno {
		case 0:
			r.queued -= uint32(n)
		case unix.EINTR, unix.EAGAIN: // a signal, or no memory just now
		default:
			return fmt.Errorf("enter the io_uring: %w", errno)
		}
		if r.queued == 0 {
			return nil
		}
	}
}

// Completion takes the next completion, if there is one.
func (r *Ring) Completion() (user uint64, result int32, ok bool) {
	head := *r.cqHead // which nobody else changes
	if head == atomic.LoadUint32(r.cqTail) {
		return 0, 0, false
	}
	e := r.cqes[cqeSize*(head&r.cqMask):][:cqeSize]
	user, result = binary.NativeEndian.Uint64(e), int32(binary.NativeEndian.Uint32(e[8:]))
	atomic.StoreUint32(r.cqHead, head+1)
	return user, result, true
}

// Close lets go of the ring. The kernel then cancels what is under way, soon
// but later. The ring's thread must not be inside a method.
func (r *Ring) Close() error {
	var err error
	for _, mem := range [][]byte{r.rings, r.sqes} {
		if mem != nil {
			err = errors.Join(err, unix.Munmap(mem))
		}
	}
	return errors.Join(err, unix.Close(r.fd))
}
