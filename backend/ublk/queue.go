// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/uring"
)

// A ring is an io_uring.
type ring interface {
	Command(fd int, op uint32, user uint64) []byte
	Read(fd int, word *uint64, user uint64)
	Enter(m uring.Mode) error
	Completion() (user uint64, result int32, ok bool)
	Close() error
}

// wakeUser marks the completion that wakes the queue's thread. Others bear a
// tag.
const wakeUser = 1 << 32

// A queue takes the requests of one of a device's queues and answers them,
// several at a time and in any order. The driver takes answers only from the
// thread that asked for requests, so requests are served by goroutines, which
// hand the answers to that thread. It submits all there are in one system call,
// which also waits for requests.
type queue struct {
	id    int
	char  int  // the character device
	ring  ring // of the thread
	descs []byte
	slots []slot // by tag

	fetch, next uint32 // the commands that ask for a request

	// Of the thread alone:
	live int    // tags that are not over
	busy int    // requests under way, or answered without the kernel knowing
	left int    // requests that came too late, left to the next server
	word uint64 // read from wake

	wake    int // an eventfd, which ends the thread's wait
	one     [8]byte
	serving sync.WaitGroup // goroutines that serve requests

	mu       sync.Mutex // guards all below
	answered []*slot
	asleep   bool // the thread waits, or is about to, and must be woken
	stopping bool // no more requests are to be served
	ended    bool // wake is closed
}

// A slot is a request under way. All that one needs is made beforehand.
type slot struct {
	q      *queue
	tag    int
	req    driver.Request
	mem    []byte // where the driver copies data; nil if we do
	result int32  // bytes, or an errno, negative
	run    func() // serves req; go needs a function without arguments not to allocate
}

// A handler serves the request in a slot and returns its result.
type handler func(*slot) int32

// newQueue makes a queue of depth requests. Its thread has yet to set the ring
// and the descriptors.
func newQueue(id, char, depth int, features driver.Feature, h handler) (*queue, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	q := &queue{
		id:       id,
		char:     char,
		slots:    make([]slot, depth),
		one:      [8]byte{0: 1, 7: 1}, // not zero in either byte order
		wake:     wake,
		answered: make([]*slot, 0, depth),
	}
	q.fetch, q.next = driver.Fetches(features)
	for tag := range q.slots {
		s := &q.slots[tag]
		s.q, s.tag = q, tag
		s.run = func() {
			s.result = h(s)
			q.answer(s)
			q.serving.Done()
		}
	}
	return q, nil
}

// start asks for the first request of each tag. None comes before the device
// is started.
func (q *queue) start() error {
	q.ring.Read(q.wake, &q.word, wakeUser)
	for i := range q.slots {
		q.ask(&q.slots[i], q.fetch)
	}
	q.live = len(q.slots)
	if err := q.ring.Enter(uring.Look); err != nil {
		return err
	}
	return q.take()
}

// ask gives the tag of a slot back to the kernel, with the last answer.
func (q *queue) ask(s *slot, op uint32) {
	driver.EncodeFetch(q.ring.Command(q.char, op, uint64(s.tag)), q.id, s.tag, s.result, address(s.mem))
}

// serve serves requests until the device is stopped, or stop is called: then
// what is under way is answered, and what the kernel sends meanwhile is left to
// the next server.
func (q *queue) serve() error {
	for {
		q.commit()
		if q.over() {
			// Without a look at what comes: the kernel notices that the thread
			// is gone by a tag for which it has asked and got nothing.
			return q.ring.Enter(uring.Submit)
		}
		if err := q.ring.Enter(q.lull()); err != nil {
			return err
		}
		if err := q.take(); err != nil {
			return err
		}
	}
}

// over reports whether nothing is left to do.
func (q *queue) over() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.busy == 0 && (q.live == 0 || q.stopping)
}

// lull has the thread wait if there is nothing else to do. Whoever gives it
// something to do from then on wakes it.
func (q *queue) lull() uring.Mode {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asleep = len(q.answered) == 0 && (q.busy > 0 || !q.stopping)
	if q.asleep {
		return uring.Wait
	}
	return uring.Look
}

// commit queues the answers there are.
func (q *queue) commit() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.answered {
		q.ask(s, q.next)
	}
	q.busy -= len(q.answered)
	q.answered = q.answered[:0]
}

// take starts to serve every request that has come.
func (q *queue) take() error {
	q.mu.Lock()
	q.asleep = false
	stopping := q.stopping
	q.mu.Unlock()
	for {
		user, result, ok := q.ring.Completion()
		switch {
		case !ok:
			return nil
		case user == wakeUser:
			q.ring.Read(q.wake, &q.word, wakeUser)
		case result == driver.NoDevice:
			q.live--
		case result < 0 || user >= uint64(len(q.slots)):
			return fmt.Errorf("queue %d, tag %d: %w", q.id, user, unix.Errno(-result))
		case stopping && (q.busy > 0 || q.left+1 < q.live):
			q.left++
		default: // even the last tag of a queue that stops, lest none be left to notice by
			q.begin(&q.slots[user])
		}
	}
}

// begin serves the request of a slot in a goroutine.
func (q *queue) begin(s *slot) {
	q.busy++
	var err error
	if s.req, err = driver.DecodeRequest(q.descs, s.tag); err != nil {
		s.result = -int32(unix.EIO)
		q.answer(s)
		return
	}
	q.serving.Add(1)
	go s.run()
}

// answer hands an answer to the thread.
func (q *queue) answer(s *slot) {
	q.mu.Lock()
	q.answered = append(q.answered, s)
	wake := q.asleep
	q.asleep = false
	q.mu.Unlock()
	if wake {
		q.rouse()
	}
}

func (q *queue) rouse() { _, _ = unix.Write(q.wake, q.one[:]) } // fails only where the thread is to wake already

// stop makes serve return.
func (q *queue) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopping = true
	if !q.ended {
		q.rouse()
	}
}

// close lets go of the ring. The thread has ended, so that the kernel hands the
// requests it has not answered to the next server.
func (q *queue) close() error {
	q.serving.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	err := unix.Close(q.wake)
	if q.descs != nil {
		err = errors.Join(err, unix.Munmap(q.descs))
	}
	if q.ring != nil {
		err = errors.Join(err, q.ring.Close())
	}
	return err
}
