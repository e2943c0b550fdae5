// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

// A fakeDriver is the kernel, as far as the control device reaches. It can end
// whoever gives it a command, as if the process were killed at that point: only
// what is deferred is done then.
type fakeDriver struct {
	mu       sync.Mutex // guards all below
	devices  map[uint32]*fakeDevice
	features driver.Feature
	count    int   // of commands
	crash    int   // at which command to kill; never if zero
	late     bool  // kill after the command, not before
	refuse   error // what the command number crash is answered with, instead
	crashed  chan struct{}
	servers  []*fakeServer
}

type fakeDevice struct {
	info   driver.Info
	params []byte
	server *fakeServer // nil if the process is dead
}

type fakeServer struct {
	once  sync.Once
	ended chan struct{}
}

func (s *fakeServer) stop() { s.once.Do(func() { close(s.ended) }) }

func (s *fakeServer) wait() error {
	<-s.ended
	return nil
}

// newFakeDriver returns a driver, and ends those who serve its devices when the
// test ends, dead or not.
func newFakeDriver(t *testing.T) *fakeDriver {
	t.Helper()
	f := &fakeDriver{devices: make(map[uint32]*fakeDevice), features: wanted, crashed: make(chan struct{})}
	t.Cleanup(func() {
		for _, s := range f.servers {
			s.stop()
		}
	})
	return f
}

var _ driver.Conn = (*fakeDriver)(nil)

// Do carries out a command.
func (f *fakeDriver) Do(ctx context.Context, c driver.Command) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	f.count++
	fatal := f.count == f.crash
	if fatal && f.refuse != nil {
		return f.refuse
	}
	if fatal && !f.late {
		f.die()
	}
	err := f.do(c)
	if fatal && f.late {
		f.die()
	}
	return err
}

// die ends the process that serves all devices, and the calling goroutine.
func (f *fakeDriver) die() {
	f.kill()
	f.crash = 0
	close(f.crashed)
	runtime.Goexit()
}

// kill ends the process that serves all devices.
func (f *fakeDriver) kill() {
	for _, d := range f.devices {
		d.server = nil
		switch {
		case d.info.State != driver.Live:
		case d.info.Features&driver.Recovery == 0:
			d.info.State = driver.Dead
		default:
			d.info.State = driver.Quiesced
		}
	}
}

func (f *fakeDriver) do(c driver.Command) error {
	d := f.devices[c.Number]
	switch {
	case c.Code == driver.GetFeatures:
		binary.NativeEndian.PutUint64(c.Buf, uint64(f.features))
		return nil
	case c.Code == driver.AddDevice:
		return f.add(c)
	case d == nil:
		return unix.ENODEV
	}
	switch c.Code {
	case driver.GetInfo:
		d.info.Encode(c.Buf)
	case driver.SetParams:
		d.params = append([]byte(nil), c.Buf...)
	case driver.GetParams:
		copy(c.Buf, d.params)
	case driver.StartDevice, driver.EndRecovery:
		if d.server == nil {
			return unix.EINVAL
		}
		d.info.State = driver.Live
	case driver.StartRecovery:
		if d.server != nil || d.info.State != driver.Quiesced {
			return unix.EBUSY
		}
	case driver.StopDevice:
		d.stop()
	case driver.DeleteDevice:
		d.stop()
		delete(f.devices, c.Number)
	default:
		return unix.EOPNOTSUPP
	}
	return nil
}

func (d *fakeDevice) stop() {
	d.info.State = driver.Dead
	if d.server != nil {
		d.server.stop()
	}
}

func (f *fakeDriver) add(c driver.Command) error {
	i, err := driver.DecodeInfo(c.Buf)
	switch {
	case err != nil:
		return err
	case i.Number != c.Number:
		return unix.EINVAL
	case f.devices[c.Number] != nil:
		return unix.EEXIST
	}
	i.Features &= f.features
	i.Encode(c.Buf)
	f.devices[c.Number] = &fakeDevice{info: i}
	return nil
}

// host returns the rest of the machine.
func (f *fakeDriver) host() host {
	return host{
		serve: func(_ context.Context, i driver.Info, _ handler) (server, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			s := &fakeServer{ended: make(chan struct{})}
			f.devices[i.Number].server = s
			f.servers = append(f.servers, s)
			return s, nil
		},
		settle: func(context.Context, driver.Info) error { return nil },
		find: func(number uint32, _ driver.Params) (node, error) {
			return node{path: fmt.Sprintf("/none/%s", driver.BlockName(number))}, nil
		},
	}
}

// number returns how many devices there are.
func (f *fakeDriver) number() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.devices)
}

// foreign makes a device of another program.
func (f *fakeDriver) foreign(number uint32) {
	f.devices[number] = &fakeDevice{
		info:   driver.Info{Queues: 1, Depth: 1, MaxRequest: 4096, Number: number, State: driver.Live, Tag: 0},
		server: &fakeServer{ended: make(chan struct{})},
	}
}

// newFakeExporter returns an exporter of devices of the driver.
func newFakeExporter(t *testing.T, f *fakeDriver, opts Options) *Exporter {
	t.Helper()
	e, err := newExporter(opts, f, f.host(), wanted)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
