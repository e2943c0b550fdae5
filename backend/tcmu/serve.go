// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/configfs"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/ring"
)

// A server takes commands out of a ring and answers them, several at a time
// and in any order.
type server struct {
	uio  io.ReadWriteCloser // tells of commands when read, and the kernel of answers when written
	mem  []byte             // of the ring
	ring *ring.Ring
	free chan *slot // as many as there may be commands under way

	kicks atomic.Int32 // answers that the kernel was not told of
	word  [4]byte      // what is written to tell it: anything
	work  sync.WaitGroup
}

// A slot is a command under way. All that one needs is made beforehand.
type slot struct {
	cmd   ring.Command
	sense [ring.SenseSize]byte
	run   func() // serves cmd; go needs a function without arguments not to allocate
}

// A handler serves a command and returns its status. It may put sense data in
// the slot.
type handler func(s *slot) (status byte, sense []byte)

// openUIO opens a UIO device. It waits for a process that has it open to go:
// one that was killed may take a moment.
func openUIO(ctx context.Context, node string) (*os.File, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		// Non-blocking, so that the runtime waits for all devices in one thread.
		f, err := os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.EBUSY) {
			return f, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another process serves the device", err)
		}
	}
}

// newServer opens a UIO device, calls prepare while no other process can, and
// maps the ring. Its commands wait until serve is called.
func newServer(ctx context.Context, tree configfs.Tree, uio configfs.UIO, depth int, h handler, prepare func() error) (*server, error) {
	size, err := tree.MapSize(uio)
	if err != nil {
		return nil, err
	}
	f, err := openUIO(ctx, uio.Node)
	if err != nil {
		return nil, err
	}
	if err := prepare(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %s: %w", uio.Node, err), f.Close())
	}
	s, err := makeServer(f, mem, depth, h)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", uio.Node, err), unix.Munmap(mem), f.Close())
	}
	return s, nil
}

func makeServer(uio io.ReadWriteCloser, mem []byte, depth int, h handler) (*server, error) {
	r, err := ring.New(mem)
	if err != nil {
		return nil, err
	}
	s := &server{uio: uio, mem: mem, ring: r, free: make(chan *slot, depth)}
	for range depth {
		sl := new(slot)
		sl.run = func() { s.do(sl, h) }
		s.free <- sl
	}
	return s, nil
}

// serve takes commands until the kernel removes the device or the server is
// closed. When it returns no command is under way and the ring is unmapped.
func (s *server) serve() error {
	err := s.take()
	s.work.Wait()
	if e := unix.Munmap(s.mem); e != nil {
		err = errors.Join(err, e)
	}
	_ = s.uio.Close() // closed already if close was called
	return err
}

func (s *server) take() error {
	var count [4]byte // of events, which nobody needs
	for {
		if err := s.drain(); err != nil {
			return err
		}
		_, err := s.uio.Read(count[:])
		switch {
		case errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed):
			return nil // the kernel has removed the device, or close was called
		case err != nil:
			return err
		}
	}
}

// drain starts every command in the ring.
func (s *server) drain() error {
	for {
		sl := <-s.free
		ok, err := s.ring.Next(&sl.cmd)
		if !ok || err != nil {
			s.free <- sl
			return err
		}
		s.work.Add(1)
		go sl.run()
	}
}

// do serves the command in sl and answers it.
func (s *server) do(sl *slot, h handler) {
	defer s.work.Done()
	status, sense := h(sl)
	if err := s.ring.Complete(sl.cmd.ID, status, sense); err == nil {
		s.kick()
	}
	s.free <- sl
}

// kick tells the kernel of answers. One goroutine does so for all that come
// meanwhile.
func (s *server) kick() {
	if s.kicks.Add(1) != 1 {
		return
	}
	for n := int32(1); n != 0; {
		seen := s.kicks.Load()
		_, _ = s.uio.Write(s.word[:]) // fails once the device is removed, when nobody waits
		n = s.kicks.Add(-seen)
	}
}

// close makes serve return once the commands under way are answered.
func (s *server) close() error { return s.uio.Close() }
