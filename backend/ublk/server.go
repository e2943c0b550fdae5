// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/uring"
)

// A server serves the queues of a device, each in a thread of its own.
type server interface {
	// stop ends the service, and leaves the device as it is: its users wait.
	stop()

	// wait returns when the service has ended and all it had is released.
	wait() error
}

// queues are the server of a device in the kernel.
type queues struct {
	char    int
	mem     []byte // for the data of all requests; nil if we copy it
	queues  []*queue
	threads []*thread
	errs    []error // of the threads, once they have ended
}

var _ server = (*queues)(nil)

// serve serves a device from now on. It returns once each queue asks for
// requests.
func serve(ctx context.Context, i driver.Info, h handler) (server, error) {
	s := &queues{errs: make([]error, i.Queues)}
	var err error
	if s.char, err = openChar(ctx, i.Number); err != nil {
		return nil, err
	}
	if err = s.makeQueues(i, h); err == nil {
		err = s.startThreads(i)
	}
	if err == nil {
		return s, nil
	}
	s.stop()
	return nil, errors.Join(err, s.wait())
}

// openChar opens the character device, which one process can at a time: one
// that was killed may take a moment.
func openChar(ctx context.Context, number uint32) (fd int, err error) {
	name := driver.CharPath(number)
	err = retryBusy(ctx, func() error {
		fd, err = unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}

// retryBusy calls f until it returns something else than EBUSY.
func retryBusy(ctx context.Context, f func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: another process serves the device: %w", ctx.Err(), err)
		}
	}
}

func (s *queues) makeQueues(i driver.Info, h handler) (err error) {
	if i.Features&driver.UserCopy == 0 {
		size := i.Queues * i.Depth * i.MaxRequest
		s.mem, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return fmt.Errorf("map %d bytes for the data of requests: %w", size, err)
		}
	}
	rest := s.mem
	for id := range i.Queues {
		q, err := newQueue(id, s.char, i.Depth, i.Features, h)
		if err != nil {
			return err
		}
		s.queues = append(s.queues, q)
		for tag := range q.slots {
			if s.mem != nil {
				q.slots[tag].mem, rest = rest[:i.MaxRequest:i.MaxRequest], rest[i.MaxRequest:]
			}
		}
	}
	return nil
}

// startThreads starts all threads and waits until each has asked for requests.
func (s *queues) startThreads(i driver.Info) error {
	ready := make(chan error, len(s.queues))
	for n, q := range s.queues {
		s.threads = append(s.threads, startThread(func() {
			if err := q.open(i); err != nil {
				ready <- fmt.Errorf("open queue %d of ublk device %d: %w", n, i.Number, err)
				return
			}
			ready <- nil
			if s.errs[n] = q.serve(); s.errs[n] != nil {
				s.stop() // a device is served as a whole or not at all
			}
		}))
	}
	var err error
	for range s.queues {
		err = errors.Join(err, <-ready)
	}
	return err
}

// open makes the ring and asks for requests.
func (q *queue) open(i driver.Info) error {
	r, err := uring.New(len(q.slots) + 1)
	if err != nil {
		return err
	}
	q.ring = r
	if err := giveUpAdmin(); err != nil {
		return err
	}
	if err := q.start(); err != nil {
		return err
	}
	// The descriptors come last: a process that maps them and is killed before
	// it has asked for requests would keep the next one from mapping them.
	q.descs, err = unix.Mmap(q.char, driver.DescsOffset(q.id), driver.DescsSize(i.Depth), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the descriptors of requests: %w", err)
	}
	return nil
}

func (s *queues) stop() {
	for _, q := range s.queues {
		q.stop()
	}
}

func (s *queues) wait() error {
	var err error
	for _, t := range s.threads {
		t.wait()
	}
	for _, q := range s.queues {
		err = errors.Join(err, q.close())
	}
	if s.mem != nil {
		err = errors.Join(err, unix.Munmap(s.mem))
	}
	return errors.Join(errors.Join(s.errs...), err, unix.Close(s.char))
}

// settle makes each queue of a device, whose server is dead, one that had a
// server. The driver minds if some had and some had not, as when a process is
// killed while it takes the device over: it would not let it be recovered, or
// worse. A thread that asks for requests of all queues and ends does it. Those
// queues that had a server refuse it.
func settle(ctx context.Context, i driver.Info) error {
	char, err := openChar(ctx, i.Number)
	if err != nil {
		return err
	}
	var r *uring.Ring
	startThread(func() {
		if r, err = uring.New(i.Depth); err != nil {
			return
		}
		for queue := range i.Queues {
			err = errors.Join(err, fetchAll(r, char, queue, i))
		}
	}).wait()
	if r != nil {
		err = errors.Join(err, r.Close())
	}
	return errors.Join(err, unix.Close(char))
}

// fetchAll asks for the requests of a queue, and does not care for the answer.
func fetchAll(r *uring.Ring, char, queue int, i driver.Info) error {
	fetch, _ := driver.Fetches(i.Features)
	addr := uintptr(0)
	if i.Features&driver.UserCopy == 0 {
		addr = pageSize // never used, but it must not be zero
	}
	for tag := range i.Depth {
		driver.EncodeFetch(r.Command(char, fetch, 0), queue, tag, 0, addr)
	}
	err := r.Enter(uring.Look)
	for ok := true; ok; {
		_, _, ok = r.Completion()
	}
	return err
}
