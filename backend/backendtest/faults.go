// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
)

func (s *suite) readError() {
	v := NewFaultVolume(s.random(4 << 20))
	f := s.open(s.export("eio", v), os.O_RDONLY|unix.O_DIRECT)
	v.Set(func(_ context.Context, op Op, off, n int64) error {
		if op == Read && off < 1<<20+4096 && off+n > 1<<20 {
			return errors.New("bad sector")
		}
		return nil
	})
	if _, err := f.ReadAt(alignedBuffer(4096), 1<<20); !errors.Is(err, unix.EIO) {
		s.Errorf("read of a bad sector = %v, want EIO", err)
	}
	s.same(f, v.Writer, 2<<20, 4096)
	v.Set(nil)
	s.same(f, v.Writer, 1<<20, 4096)
}

func (s *suite) writeErrors() {
	v := NewFaultVolume(NewMemVolume(4 << 20))
	f := s.open(s.export("werr", v), os.O_RDWR|unix.O_DIRECT)
	for op, request := range map[Op]func() error{
		Write: func() error { _, err := f.WriteAt(alignedBuffer(4096), 0); return err },
		Sync:  f.Sync,
		Discard: func() error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		},
	} {
		v.Set(func(_ context.Context, o Op, _, _ int64) error {
			if o == op {
				return errors.New("disk on fire")
			}
			return nil
		})
		if request() == nil {
			s.Errorf("%s succeeded where the volume failed", op)
		}
		v.Set(nil)
		if err := request(); err != nil {
			s.Errorf("%s after the volume recovered: %v", op, err)
		}
	}
}

// slow holds one read for ever and asks all others to pass.
func (s *suite) slow() {
	v, other := NewFaultVolume(s.random(4<<20)), s.random(4<<20)
	d := s.export("slow", v)
	f, g := s.open(d, os.O_RDONLY|unix.O_DIRECT), s.open(s.export("fast", other), os.O_RDONLY|unix.O_DIRECT)
	entered, release := v.Stall(Read, 0)
	defer release()
	held := s.readInBackground(f, v.Writer, 0, 4096)
	<-entered
	rnd := newRand(s)
	for range 20 {
		off, n := sectors(rnd, 1<<20, 64<<10)
		s.same(f, v.Writer, 1<<20+off, n) // in the same device
		s.same(g, other, off, n)
	}
	release()
	must(s, <-held)
}

func (s *suite) removeOpen() {
	v := s.random(1 << 20)
	d := s.export("open", v)
	f := s.open(d, os.O_RDONLY)
	for range 2 {
		if err := d.Remove(s.Context()); !errors.Is(err, backend.ErrBusy) {
			s.Fatalf("Remove of an open device = %v, want ErrBusy", err)
		}
	}
	select {
	case <-d.Done():
		s.Fatal("Remove that failed with ErrBusy stopped the device")
	default:
	}
	s.same(f, v, 0, 1<<20)
	s.same(s.open(d, os.O_RDONLY|unix.O_DIRECT), v, 0, 1<<20)
	s.closeFiles()
	s.remove(d, v)
	if err := d.Remove(s.Context()); err != nil {
		s.Errorf("second Remove = %v, want nil", err)
	}
	if v.Closes() != 1 {
		s.Errorf("volume closed %d times, want once", v.Closes())
	}
}

// removeInFlight asks Remove to leave a volume alone that is being read.
func (s *suite) removeInFlight() {
	mem := s.random(1 << 20)
	v := NewFaultVolume(mem)
	d := s.export("inflight", v)
	f := s.open(d, os.O_RDONLY|unix.O_DIRECT)
	entered, release := v.Stall(Read, 4096)
	defer release()
	held := s.readInBackground(f, mem, 4096, 4096)
	<-entered
	if err := d.Remove(s.Context()); !errors.Is(err, backend.ErrBusy) {
		s.Errorf("Remove during a read = %v, want ErrBusy", err)
	}
	if mem.Closes() != 0 {
		s.Error("Remove closed the volume under a read")
	}
	release()
	must(s, <-held)
	s.closeFiles()
	s.remove(d, mem)
}

func (s *suite) removeDone() {
	v := s.random(1 << 20)
	d := s.export("ctx", v)
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if err := d.Remove(ctx); err != nil && !errors.Is(err, context.Canceled) {
		s.Errorf("Remove with a done context = %v", err)
	}
	s.remove(d, v)
}

func (s *suite) removeConcurrently() {
	v := s.random(1 << 20)
	d := s.export("race", v)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := d.Remove(s.Context()); err != nil {
				s.Errorf("Remove = %v", err)
			}
		})
	}
	wg.Wait()
	s.remove(d, v)
	if v.Closes() != 1 {
		s.Errorf("volume closed %d times, want once", v.Closes())
	}
}

// panics asks that a panic in a volume is an error for the reader, the end of
// the device, and nothing to the process or other devices.
func (s *suite) panics() {
	v, other := NewFaultVolume(s.random(1<<20)), s.random(1<<20)
	d := s.export("panic", v)
	f := s.open(d, os.O_RDONLY|unix.O_DIRECT)
	g := s.open(s.export("calm", other), os.O_RDONLY|unix.O_DIRECT)
	v.Set(func(context.Context, Op, int64, int64) error { panic("volume bug") })
	for range 2 {
		if _, err := f.ReadAt(alignedBuffer(4096), 0); !errors.Is(err, unix.EIO) {
			s.Errorf("read of a panicking volume = %v, want EIO", err)
		}
		v.Set(nil) // the device has failed for good: its volume cannot be trusted
	}
	<-d.Done()
	if d.Err() == nil {
		s.Error("a device that failed has no Err")
	}
	s.same(g, other, 0, 1<<20)
	s.closeFiles()
	must(s, d.Remove(s.Context()))
	if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("%s is left after Remove: %v", d.Path(), err)
	}
}
