// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/overlaybd-go/overlaybd/backend"
)

// An Op is a kind of request to a volume.
type Op string

// The requests that a Script sees.
const (
	Read    Op = "read"
	Write   Op = "write"
	Discard Op = "discard"
	Sync    Op = "sync"
)

// A Script decides what becomes of a request for n bytes at off before the
// volume sees it: it lets it pass by returning nil, fails it with an error,
// holds it by not returning, or panics.
type Script func(ctx context.Context, op Op, off, n int64) error

// A FaultVolume is a volume that fails, stalls and panics as it is told.
type FaultVolume struct {
	backend.Writer
	script atomic.Pointer[Script]
}

var _ backend.Writer = (*FaultVolume)(nil)

// NewFaultVolume returns v, faultless until Set is called.
func NewFaultVolume(v backend.Writer) *FaultVolume { return &FaultVolume{Writer: v} }

// Set makes s decide about every request from now on; nil lets all pass.
func (v *FaultVolume) Set(s Script) {
	if s == nil {
		v.script.Store(nil)
		return
	}
	v.script.Store(&s)
}

// Stall holds requests of kind op that touch the byte at off until release is
// called or their context is done. Entered gets a value when one is first held.
func (v *FaultVolume) Stall(op Op, off int64) (entered <-chan struct{}, release func()) {
	held, free := make(chan struct{}, 1), make(chan struct{})
	v.Set(func(ctx context.Context, o Op, at, n int64) error {
		if o != op || off < at || off >= at+n {
			return nil
		}
		select {
		case held <- struct{}{}:
		default:
		}
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return held, sync.OnceFunc(func() { close(free) })
}

func (v *FaultVolume) fault(ctx context.Context, op Op, off, n int64) error {
	if s := v.script.Load(); s != nil {
		return (*s)(ctx, op, off, n)
	}
	return nil
}

// ReadAt implements backend.Volume.
func (v *FaultVolume) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := v.fault(ctx, Read, off, int64(len(p))); err != nil {
		return 0, err
	}
	return v.Writer.ReadAt(ctx, p, off)
}

// WriteAt implements backend.Writer.
func (v *FaultVolume) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := v.fault(ctx, Write, off, int64(len(p))); err != nil {
		return 0, err
	}
	return v.Writer.WriteAt(ctx, p, off)
}

// Discard implements backend.Writer.
func (v *FaultVolume) Discard(ctx context.Context, off, n int64) error {
	if err := v.fault(ctx, Discard, off, n); err != nil {
		return err
	}
	return v.Writer.Discard(ctx, off, n)
}

// Sync implements backend.Writer.
func (v *FaultVolume) Sync(ctx context.Context) error {
	if err := v.fault(ctx, Sync, 0, 0); err != nil {
		return err
	}
	return v.Writer.Sync(ctx)
}
