// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"encoding/binary"
	"io"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/scsi"
)

// fakeUIO is a kernel that wants one command served per event, always the same.
type fakeUIO struct {
	events chan struct{}
	answer chan struct{}
	once   sync.Once
}

func (u *fakeUIO) Read(p []byte) (int, error) {
	if _, ok := <-u.events; !ok {
		return 0, unix.EIO
	}
	return len(p), nil
}

func (u *fakeUIO) Write(p []byte) (int, error) {
	u.answer <- struct{}{}
	return len(p), nil
}

func (u *fakeUIO) Close() error {
	u.once.Do(func() { close(u.events) })
	return nil
}

var _ io.ReadWriteCloser = (*fakeUIO)(nil)

const (
	ringOff, ringSize = 128, 128 // one entry
	dataOff           = 4096
)

// readRing returns a ring in memory that can be unmapped, whose only entry
// reads 4 KiB from block 16.
func readRing(t *testing.T) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	ne := binary.NativeEndian
	ne.PutUint16(mem, 2)
	ne.PutUint16(mem[2:], 1)
	ne.PutUint32(mem[4:], ringOff)
	ne.PutUint32(mem[8:], 2*ringSize)
	for _, at := range []int{ringOff, ringOff + ringSize} {
		e := mem[at:]
		ne.PutUint32(e, ringSize|1)
	}
	copy(mem[2048:], []byte{0x28, 0, 0, 0, 0, 16, 0, 0, 8})
	return mem
}

// request makes the entry at the head a command again, and adds it.
func request(mem []byte) {
	ne := binary.NativeEndian
	head := ne.Uint32(mem[12:])
	e := mem[ringOff+head:]
	clear(e[8:ringSize])
	ne.PutUint32(e[8:], 1)
	ne.PutUint64(e[24:], 2048)
	ne.PutUint64(e[48:], dataOff)
	ne.PutUint64(e[56:], 4096)
	ne.PutUint32(mem[12:], (head+ringSize)%(2*ringSize))
}

// TestServeNoAllocations serves reads from the ring to the volume and back: a
// command costs no allocation, and the data lands where the kernel wants it.
func TestServeNoAllocations(t *testing.T) {
	v := backendtest.NewMemVolume(1 << 20)
	if _, err := v.WriteAt(t.Context(), []byte(string(make([]byte, 511))+"x"), 16*512); err != nil {
		t.Fatal(err)
	}
	unit := scsi.NewUnit(v, "disk")
	uio := &fakeUIO{events: make(chan struct{}), answer: make(chan struct{})}
	mem := readRing(t)
	s, err := makeServer(uio, mem, 4, func(sl *slot) (byte, []byte) {
		if err := unit.Do(t.Context(), &sl.cmd.CDB, sl.cmd.Data); err != nil {
			return refuse(sl, err)
		}
		return scsi.Good, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.serve(); err != nil {
			t.Error(err)
		}
	})
	got := testing.AllocsPerRun(200, func() {
		request(mem)
		uio.events <- struct{}{}
		<-uio.answer
	})
	if got != 0 {
		t.Errorf("%v allocations per command", got)
	}
	if got := mem[dataOff+511]; got != 'x' {
		t.Errorf("the data area holds %q", got)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
