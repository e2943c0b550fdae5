// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/uring"
)

// ControlPath is the control device.
const ControlPath = "/dev/ublk-control"

// A Kernel carries commands to the running kernel.
type Kernel struct{ f *os.File }

var _ Conn = (*Kernel)(nil)

// Open opens the control device at path.
func Open(path string) (*Kernel, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &Kernel{f}, nil
}

// Close closes the control device, except for commands under way.
func (k *Kernel) Close() error { return k.f.Close() }

// Do carries out a command. The driver may wait for long, for what only other
// commands bring about, so each gets a thread and a ring of its own.
func (k *Kernel) Do(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	own := slices.Clone(c.Buf) // the driver may write to it after ctx is done
	run := Command{Code: c.Code, Ioctl: c.Ioctl, Number: c.Number, Data: c.Data, Buf: own}
	done := make(chan error, 1)
	go func() { done <- k.run(&run) }()
	select {
	case err := <-done:
		copy(c.Buf, own)
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run carries out a command, with a thread that waits for it.
func (k *Kernel) run(c *Command) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := uring.New(1)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // nothing is under way
	var pin runtime.Pinner
	defer pin.Unpin()
	buf := unsafe.SliceData(c.Buf)
	if buf != nil {
		pin.Pin(buf)
	}
	c.encode(r.Command(int(k.f.Fd()), c.op(), 0), uintptr(unsafe.Pointer(buf)))
	for {
		if err := r.Enter(uring.Wait); err != nil {
			return err
		}
		_, result, ok := r.Completion()
		switch {
		case ok && result < 0:
			return unix.Errno(-result)
		case ok:
			return nil
		}
	}
}
