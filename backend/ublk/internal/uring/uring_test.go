// SPDX-License-Identifier: Apache-2.0

package uring

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

func TestLayout(t *testing.T) {
	if got := unsafe.Sizeof(params{}); got != 120 {
		t.Errorf("struct io_uring_params has %d bytes, want 120", got)
	}
	if got := unsafe.Offsetof(params{}.cq); got != 80 {
		t.Errorf("cq_off is at %d, want 80", got)
	}
}

// newRing makes a ring for the test's thread.
func newRing(t *testing.T, n int) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := New(n)
	need.Capability(t, "io_uring", err)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestRead has more reads than the ring is long answered by an eventfd, with
// the data and the result that belong to each.
func TestRead(t *testing.T) {
	r := newRing(t, 2)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	word := new(uint64)
	for i := range uint64(9) {
		r.Read(fd, word, 100+i)
		if err := r.Enter(Look); err != nil {
			t.Fatal(err)
		}
		if user, _, ok := r.Completion(); ok {
			t.Fatalf("read %d of nothing is complete", user)
		}
		if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 7+i)); err != nil {
			t.Fatal(err)
		}
		user, result, ok := uint64(0), int32(0), false
		for !ok {
			if err := r.Enter(Wait); err != nil {
				t.Fatal(err)
			}
			user, result, ok = r.Completion()
		}
		if user != 100+i || result != 8 || *word != 7+i {
			t.Errorf("completion of %d with %d, word %d, want %d with 8, word %d", user, result, *word, 100+i, 7+i)
		}
	}
}

// TestCommand asks what the kernel is told, and that it minds a file without
// commands.
func TestCommand(t *testing.T) {
	r := newRing(t, 4)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := sqeSize * (r.next & r.sqMask)
	data := r.Command(fd, 0x1234, 42)
	if len(data) != MaxCommand {
		t.Errorf("room for %d bytes, want %d", len(data), MaxCommand)
	}
	copy(data, "data")
	want := make([]byte, sqeSize)
	want[0] = opCommand
	binary.NativeEndian.PutUint32(want[4:], uint32(fd))
	binary.NativeEndian.PutUint32(want[8:], 0x1234)
	binary.NativeEndian.PutUint64(want[32:], 42)
	copy(want[48:], "data")
	if got := r.sqes[at:][:sqeSize]; !bytes.Equal(got, want) {
		t.Errorf("submission\n%x, want\n%x", got, want)
	}
	if err := r.Enter(Wait); err != nil {
		t.Fatal(err)
	}
	if user, result, ok := r.Completion(); !ok || user != 42 || unix.Errno(-result) != unix.EOPNOTSUPP {
		t.Errorf("completion %d with %d, %v, want EOPNOTSUPP of 42", user, result, ok)
	}
}

// TestBatch submits several requests at once, and takes all answers after one
// wait.
func TestBatch(t *testing.T) {
	const n = 8
	r := newRing(t, n)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for i := range uint64(n) {
		r.Command(fd, 1, i)
	}
	if err := r.Enter(Wait); err != nil {
		t.Fatal(err)
	}
	for want := range uint64(n) {
		if user, _, ok := r.Completion(); !ok || user != want {
			t.Errorf("completion of %d, %v, want %d", user, ok, want)
		}
	}
}
