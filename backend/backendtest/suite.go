// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/overlaybd-go/overlaybd/backend"
)

// patience is how long a device may take for what should be instant.
const patience = 30 * time.Second

// A suite is one case of Run.
type suite struct {
	*testing.T
	exporter backend.Exporter

	mu      sync.Mutex // guards all below
	devices map[string]backend.Device
	files   []*os.File
}

// id makes name unique among the tests of the machine.
func (s *suite) id(name string) string { return fmt.Sprintf("backendtest-%d-%s", os.Getpid(), name) }

// export makes a device that is removed when the case ends.
func (s *suite) export(name string, v backend.Volume) backend.Device {
	s.Helper()
	d, err := s.exporter.Export(s.Context(), s.id(name), v)
	must(s, err)
	if d.ID() != s.id(name) {
		s.Errorf("ID() = %q, want %q", d.ID(), s.id(name))
	}
	s.watch(d)
	return d
}

// device returns what export made of name.
func (s *suite) device(name string) backend.Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.devices[s.id(name)]
}

// watch removes d when the case ends, and aborts it, where the exporter can,
// when the case hangs: a thread that waits for a device cannot be killed.
func (s *suite) watch(d backend.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.devices == nil {
		s.devices = make(map[string]backend.Device)
		s.Cleanup(s.removeAll)
	}
	s.devices[d.ID()] = d
	if a, ok := d.(interface{ Abort() error }); ok {
		timer := time.AfterFunc(patience, func() {
			s.Errorf("device %s hangs, aborted: %v", d.ID(), a.Abort())
		})
		s.Cleanup(func() { timer.Stop() })
	}
}

func (s *suite) removeAll() {
	s.closeFiles()
	for _, d := range s.devices {
		if err := d.Remove(context.WithoutCancel(s.Context())); err != nil {
			s.Errorf("Remove at the end: %v", err)
		}
		<-d.Done()
		if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
			s.Errorf("%s is left: %v", d.Path(), err)
		}
		s.checkMounts(d)
	}
}

// checkMounts fails if something is mounted where the device was.
func (s *suite) checkMounts(d backend.Device) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(s, err)
	if bytes.Contains(mounts, []byte(d.ID())) {
		s.Errorf("a mount of device %s is left", d.ID())
	}
}

// remove removes d and checks that it has let go of v.
func (s *suite) remove(d backend.Device, v *MemVolume) {
	s.Helper()
	must(s, d.Remove(s.Context()))
	if v.Closes() == 0 {
		s.Error("Remove left the volume open")
	}
	<-d.Done()
	if err := d.Err(); err != nil {
		s.Errorf("Err() after Remove = %v, want nil", err)
	}
	if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("%s is left after Remove: %v", d.Path(), err)
	}
}

// open opens the device until closeFiles or the end of the case.
func (s *suite) open(d backend.Device, flag int) *os.File {
	s.Helper()
	f, err := os.OpenFile(d.Path(), flag, 0)
	must(s, err)
	s.files = append(s.files, f)
	return f
}

func (s *suite) closeFiles() {
	for _, f := range s.files {
		_ = f.Close() // some are closed by the case
	}
	s.files = nil
}

// random returns a volume of random bytes.
func (s *suite) random(size int64) *MemVolume {
	s.Helper()
	v := NewMemVolume(size)
	p := make([]byte, size)
	fill(newRand(s), p)
	mustMove(s, len(p))(v.WriteAt(s.Context(), p, 0))
	return v
}

// same fails the case unless f holds what v does.
func (s *suite) same(f *os.File, v backend.Volume, off int64, n int) {
	s.Helper()
	must(s, s.differs(f, v, off, n))
}

func (s *suite) differs(f *os.File, v backend.Volume, off int64, n int) error {
	got := alignedBuffer(n)
	if _, err := f.ReadAt(got, off); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head := off % backend.SectorSize
	end := (off + int64(n) + backend.SectorSize - 1) / backend.SectorSize * backend.SectorSize
	want := make([]byte, end-off+head)
	if _, err := v.ReadAt(s.Context(), want, off-head); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return difference(got, want[head:][:n], off)
}

// readInBackground compares while the case goes on.
func (s *suite) readInBackground(f *os.File, v backend.Volume, off int64, n int) <-chan error {
	done := make(chan error, 1)
	go func() { done <- s.differs(f, v, off, n) }()
	return done
}

// checkLeaks asks, when all else is cleaned up, that the case has left no
// goroutine and no file descriptor.
func (s *suite) checkLeaks() {
	warmUp(s)
	files := openFiles(s)
	s.Cleanup(func() {
		for deadline := time.Now().Add(patience); ; runtime.Gosched() {
			leaked := leakedGoroutines()
			if extra := newFiles(openFiles(s), files); len(extra) > 0 {
				leaked = append(leaked, "open files: "+strings.Join(extra, ", "))
			}
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(deadline) {
				s.Errorf("left behind:\n%s", strings.Join(leaked, "\n\n"))
				return
			}
		}
	})
}

// leakedGoroutines returns the stacks of goroutines that run an exporter.
func leakedGoroutines() []string {
	buf := make([]byte, 1<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	return slices.DeleteFunc(stacks, func(stack string) bool {
		ours := strings.Contains(stack, "/backend/") || strings.Contains(stack, "go-fuse")
		return !ours || strings.Contains(stack, "testing.tRunner")
	})
}

// warmUp makes the runtime open the descriptors it keeps for itself.
func warmUp(t testing.TB) {
	r, w, err := os.Pipe()
	must(t, err)
	must(t, errors.Join(r.Close(), w.Close()))
}

// openFiles returns what the process's descriptors refer to.
func openFiles(t testing.TB) []string {
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var open []string
	for _, fd := range fds {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			open = append(open, name)
		}
	}
	slices.Sort(open)
	return open
}

// newFiles returns the elements of after that are not in before.
func newFiles(after, before []string) []string {
	left := slices.Clone(before)
	return slices.DeleteFunc(after, func(name string) bool {
		i := slices.Index(left, name)
		if i >= 0 {
			left = slices.Delete(left, i, i+1)
		}
		return i >= 0
	})
}

func copyVolume(t testing.TB, dst *MemVolume, src backend.Volume) {
	p := make([]byte, src.Size())
	mustMove(t, len(p))(src.ReadAt(t.Context(), p, 0))
	mustMove(t, len(p))(dst.WriteAt(t.Context(), p, 0))
}

func pattern(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// alignedBuffer returns n bytes at an address that O_DIRECT accepts.
func alignedBuffer(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (page - 1)
	return b[skip:][:n:n]
}
