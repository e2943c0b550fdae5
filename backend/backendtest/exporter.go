// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
)

// Run holds an exporter against the contract. The function mk makes one for
// each case; what it must clean up it registers with t.
func Run(t *testing.T, mk func(t *testing.T) backend.Exporter) {
	for _, c := range []struct {
		name string
		test func(*suite)
	}{
		{"Content", (*suite).content},
		{"Sparse64GiB", (*suite).sparse},
		{"UnalignedReads", (*suite).unaligned},
		{"ConcurrentReads", (*suite).concurrentReads},
		{"Writes", (*suite).writes},
		{"Sync", (*suite).sync},
		{"Discard", (*suite).discard},
		{"ReadOnly", (*suite).readOnly},
		{"DuplicateID", (*suite).duplicate},
		{"ReuseID", (*suite).reuse},
		{"ExportDoneContext", (*suite).exportDone},
		{"ReadErrorRecovers", (*suite).readError},
		{"WriteErrors", (*suite).writeErrors},
		{"SlowVolume", (*suite).slow},
		{"RemoveWhileOpen", (*suite).removeOpen},
		{"RemoveInFlight", (*suite).removeInFlight},
		{"RemoveDoneContext", (*suite).removeDone},
		{"RemoveConcurrently", (*suite).removeConcurrently},
		{"Panic", (*suite).panics},
		{"ManyDevices", (*suite).many},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &suite{T: t}
			s.checkLeaks()
			s.exporter = mk(t)
			c.test(s)
		})
	}
}

func (s *suite) content() {
	for name, size := range map[string]int64{"sector": 512, "page": 4096, "odd": 5<<20 + 3*512} {
		v := s.random(size)
		d := s.export(name, v)
		f := s.open(d, os.O_RDONLY)
		if got, err := f.Seek(0, io.SeekEnd); err != nil || got != size {
			s.Errorf("size of %s = %d, %v, want %d", d.Path(), got, err, size)
		}
		s.same(f, v, 0, int(size))
		direct := s.open(d, os.O_RDONLY|unix.O_DIRECT)
		rnd := newRand(s)
		for range 50 {
			off, n := sectors(rnd, size, 2<<20)
			s.same(direct, v, off, n)
		}
	}
}

func (s *suite) sparse() {
	const size = 64 << 30
	v := NewMemVolume(size)
	marks := []int64{0, 4 << 30, size / 2, size - 4096}
	for i, off := range marks {
		mustMove(s, 4096)(v.WriteAt(s.Context(), pattern(byte(i+1), 4096), off))
	}
	f := s.open(s.export("sparse", v), os.O_RDONLY)
	for _, off := range marks {
		s.same(f, v, max(0, off-8192), 12288)
	}
	if n, err := f.ReadAt(make([]byte, 512), size); n != 0 || !errors.Is(err, io.EOF) {
		s.Errorf("read at the end = %d, %v, want EOF", n, err)
	}
}

// unaligned reads bytes, as tools do that know of no sectors.
func (s *suite) unaligned() {
	v := s.random(1<<20 + 512)
	f := s.open(s.export("unaligned", v), os.O_RDONLY)
	rnd := newRand(s)
	for range 200 {
		off := rnd.Int64N(v.Size())
		s.same(f, v, off, int(1+rnd.Int64N(min(v.Size()-off, 300<<10))))
	}
}

func (s *suite) concurrentReads() {
	v := s.random(8 << 20)
	f := s.open(s.export("concurrent", v), os.O_RDONLY|unix.O_DIRECT)
	var wg sync.WaitGroup
	for range 16 {
		rnd := newRand(s)
		wg.Go(func() {
			for range 40 {
				off, n := sectors(rnd, v.Size(), 128<<10)
				if err := s.differs(f, v, off, n); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// writes makes random writes and asks both the device and the volume for them.
func (s *suite) writes() {
	v, model := s.random(4<<20), NewMemVolume(4<<20)
	copyVolume(s, model, v)
	f := s.open(s.export("writes", v), os.O_RDWR|unix.O_DIRECT)
	rnd := newRand(s)
	for range 100 {
		off, n := sectors(rnd, v.Size(), 1<<20)
		p := alignedBuffer(n)
		fill(rnd, p)
		mustMove(s, n)(f.WriteAt(p, off))
		mustMove(s, n)(model.WriteAt(s.Context(), p, off))
		off, n = sectors(rnd, v.Size(), 1<<20)
		s.same(f, model, off, n)
	}
	s.same(f, model, 0, int(v.Size()))
	s.same(f, v, 0, int(v.Size()))
	if n, err := f.WriteAt(alignedBuffer(4096), v.Size()); err == nil {
		s.Errorf("write past the end = %d, nil, want an error", n)
	}
}

func (s *suite) sync() {
	v := NewMemVolume(1 << 20)
	f := s.open(s.export("sync", v), os.O_RDWR)
	mustMove(s, 4096)(f.WriteAt(pattern(7, 4096), 8192))
	must(s, f.Sync())
	if v.Syncs() == 0 {
		s.Error("fsync did not reach the volume")
	}
	s.same(f, v, 8192, 4096)

	before := v.Syncs()
	dsync := s.open(s.device("sync"), os.O_RDWR|unix.O_DSYNC|unix.O_DIRECT)
	mustMove(s, 4096)(dsync.WriteAt(alignedBuffer(4096), 0))
	if v.Syncs() == before {
		s.Error("a write with O_DSYNC did not sync the volume")
	}
}

func (s *suite) discard() {
	v := s.random(1 << 20)
	f := s.open(s.export("discard", v), os.O_RDWR|unix.O_DIRECT)
	model := NewMemVolume(v.Size())
	copyVolume(s, model, v)
	for _, r := range []struct{ off, n int64 }{{64 << 10, 256 << 10}, {512 << 10, 4096}, {v.Size() - 8192, 8192}} {
		must(s, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.off, r.n))
		must(s, model.Discard(s.Context(), r.off, r.n))
	}
	s.same(f, model, 0, int(v.Size()))
	s.same(f, v, 0, int(v.Size()))
}

func (s *suite) readOnly() {
	v := s.random(1 << 20)
	d := s.export("readonly", ReadOnly(v))
	if f, err := os.OpenFile(d.Path(), os.O_RDWR, 0); err == nil {
		_, err := f.WriteAt(pattern(1, 4096), 0)
		if err := errors.Join(err, f.Sync()); err == nil {
			s.Error("a read-only device was written to")
		}
		must(s, f.Close())
	}
	s.same(s.open(d, os.O_RDONLY), v, 0, int(v.Size()))
}

func (s *suite) duplicate() {
	first, second := s.random(1<<20), s.random(1<<20)
	d := s.export("twice", first)
	if _, err := s.exporter.Export(s.Context(), d.ID(), second); !errors.Is(err, fs.ErrExist) {
		s.Errorf("Export of an id in use = %v, want fs.ErrExist", err)
	}
	if second.Closes() != 0 {
		s.Error("the refused volume was closed; it is the caller's")
	}
	s.same(s.open(d, os.O_RDONLY), first, 0, 1<<20)
}

func (s *suite) reuse() {
	for range 3 {
		v := s.random(1 << 20)
		d := s.export("again", v)
		f := s.open(d, os.O_RDONLY)
		s.same(f, v, 0, 1<<20)
		must(s, f.Close())
		s.remove(d, v)
	}
}

func (s *suite) exportDone() {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	v := NewMemVolume(1 << 20)
	if d, err := s.exporter.Export(ctx, s.id("done"), v); err == nil {
		s.Error("Export with a done context succeeded")
		must(s, d.Remove(s.Context()))
	} else if v.Closes() != 0 {
		s.Error("Export failed and closed the volume")
	}
}

func (s *suite) many() {
	const devices = 8
	var wg sync.WaitGroup
	for i := range devices {
		v := s.random(1 << 20)
		wg.Go(func() {
			d, err := s.exporter.Export(s.Context(), s.id(string(rune('a'+i))), v)
			if err != nil {
				s.Error(err)
				return
			}
			s.watch(d)
			f, err := os.Open(d.Path())
			if err != nil {
				s.Error(err)
				return
			}
			if err := errors.Join(s.differs(f, v, 0, 1<<20), f.Close(), d.Remove(s.Context())); err != nil {
				s.Errorf("device %s: %v", d.ID(), err)
			}
		})
	}
	wg.Wait()
}
