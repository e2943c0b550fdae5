// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A Code is the number of a command to the control device.
type Code uint8

// Commands to the control device.
const (
	GetInfo       Code = 0x02
	AddDevice     Code = 0x04
	DeleteDevice  Code = 0x05
	StartDevice   Code = 0x06
	StopDevice    Code = 0x07
	SetParams     Code = 0x08
	GetParams     Code = 0x09
	StartRecovery Code = 0x10
	EndRecovery   Code = 0x11
	GetFeatures   Code = 0x13
)

var names = map[Code]string{
	GetInfo:       "look up",
	AddDevice:     "add",
	DeleteDevice:  "delete",
	StartDevice:   "start",
	StopDevice:    "stop",
	SetParams:     "set the parameters of",
	GetParams:     "read the parameters of",
	StartRecovery: "start to recover",
	EndRecovery:   "recover",
	GetFeatures:   "ask for features of",
}

// A Command is one to the control device.
type Command struct {
	Code   Code
	Ioctl  bool // whether the driver numbers commands like ioctls
	Number uint32
	Data   uint64
	Buf    []byte // read or written by the driver
}

// op returns the number under which the driver knows the command.
func (c *Command) op() uint32 {
	const size = 32 // of a command, in bytes
	switch {
	case !c.Ioctl:
		return uint32(c.Code)
	case c.Code == GetInfo || c.Code == GetParams || c.Code == GetFeatures:
		return ioctl(readOnly, uint32(c.Code), size)
	}
	return ioctl(readWrite, uint32(c.Code), size)
}

// encode fills in the command's data, where buf is that of the command.
//
//	off  size
//	  0     4  number of the device
//	  4     2  queue, or none
//	  6     2  length of the buffer
//	  8     8  address of the buffer
//	 16     8  data
func (c *Command) encode(p []byte, buf uintptr) {
	ne := binary.NativeEndian
	ne.PutUint32(p, c.Number)
	ne.PutUint16(p[4:], 1<<16-1)
	ne.PutUint16(p[6:], uint16(len(c.Buf)))
	ne.PutUint64(p[8:], uint64(buf))
	ne.PutUint64(p[16:], c.Data)
}

// A Conn carries commands to a driver. When ctx is done it returns, although
// the command may still be carried out. [Kernel] is one.
type Conn interface {
	Do(ctx context.Context, c Command) error
}

// A Control makes and removes devices.
type Control struct {
	conn     Conn
	features Feature
}

// NewControl returns a control over a driver, of which only the given features
// are used. What the driver has of them, it is asked.
func NewControl(ctx context.Context, conn Conn, use Feature) (*Control, error) {
	const notSupported = unix.Errno(524) // ENOTSUPP, which is the kernel's own
	var b [8]byte
	err := conn.Do(ctx, Command{Code: GetFeatures, Ioctl: true, Buf: b[:]})
	switch {
	case isAny(err, unix.EINVAL, unix.EOPNOTSUPP, notSupported, unix.ENODEV):
		// Before Linux 6.5 it cannot be asked: it tells when it adds a device.
		return &Control{conn, use &^ (IoctlEncode | UserCopy)}, nil
	case err != nil:
		return nil, fmt.Errorf("ask the ublk driver for its features: %w", err)
	}
	return &Control{conn, use & Feature(binary.NativeEndian.Uint64(b[:]))}, nil
}

func isAny(err error, errnos ...unix.Errno) bool {
	return slices.ContainsFunc(errnos, func(e unix.Errno) bool { return errors.Is(err, e) })
}

// Features returns what the driver has of the features that are to be used.
func (c *Control) Features() Feature { return c.features }

func (c *Control) do(ctx context.Context, code Code, number uint32, data uint64, buf []byte) error {
	err := c.conn.Do(ctx, Command{
		Code:   code,
		Ioctl:  c.features&IoctlEncode != 0,
		Number: number,
		Data:   data,
		Buf:    buf,
	})
	if err != nil {
		return fmt.Errorf("%s ublk device %d: %w", names[code], number, err)
	}
	return nil
}

// Add makes the device i.Number, which has only a character device so far, and
// returns what became of it: the driver may grant less than it is asked for.
// It fails with EEXIST if the number is taken.
func (c *Control) Add(ctx context.Context, i Info) (Info, error) {
	b := make([]byte, InfoSize)
	i.Features = c.features
	i.Encode(b)
	if err := c.do(ctx, AddDevice, i.Number, 0, b); err != nil {
		return Info{}, err
	}
	return DecodeInfo(b)
}

// Info returns what the kernel knows of a device. It fails with ENODEV if there
// is none.
func (c *Control) Info(ctx context.Context, number uint32) (Info, error) {
	b := make([]byte, InfoSize)
	if err := c.do(ctx, GetInfo, number, 0, b); err != nil {
		return Info{}, err
	}
	return DecodeInfo(b)
}

// SetParams describes the disk of a device that is not started.
func (c *Control) SetParams(ctx context.Context, number uint32, p Params) error {
	b := make([]byte, ParamsSize)
	p.Encode(b)
	return c.do(ctx, SetParams, number, 0, b)
}

// Params returns what a disk is like.
func (c *Control) Params(ctx context.Context, number uint32) (Params, error) {
	b := make([]byte, ParamsSize)
	binary.NativeEndian.PutUint32(b, ParamsSize)
	if err := c.do(ctx, GetParams, number, 0, b); err != nil {
		return Params{}, err
	}
	return DecodeParams(b)
}

// Start makes the disk appear. It waits until each queue asks for requests.
func (c *Control) Start(ctx context.Context, number uint32, pid int) error {
	return c.do(ctx, StartDevice, number, uint64(pid), nil)
}

// Stop makes the disk disappear, in use or not. It waits for requests under way
// unless the device's server is dead: then they fail.
func (c *Control) Stop(ctx context.Context, number uint32) error {
	return c.do(ctx, StopDevice, number, 0, nil)
}

// Delete forgets the device. It waits until nobody has its disk or its
// character device open.
func (c *Control) Delete(ctx context.Context, number uint32) error {
	return c.do(ctx, DeleteDevice, number, 0, nil)
}

// StartRecovery begins to serve a device anew, whose server is dead. It fails
// with EBUSY until that is so.
func (c *Control) StartRecovery(ctx context.Context, number uint32) error {
	return c.do(ctx, StartRecovery, number, 0, nil)
}

// EndRecovery lets the users of a device go on. It waits until each queue asks
// for requests.
func (c *Control) EndRecovery(ctx context.Context, number uint32, pid int) error {
	return c.do(ctx, EndRecovery, number, uint64(pid), nil)
}
