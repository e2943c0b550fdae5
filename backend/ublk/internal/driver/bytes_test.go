// SPDX-License-Identifier: Apache-2.0

//go:build !s390x && !ppc64 && !mips && !mips64

// These tests compare with bytes made by hand from linux/ublk_cmd.h, on a
// little-endian machine.

package driver

import (
	"bytes"
	"testing"
)

func TestInfo(t *testing.T) {
	want := []byte{
		2, 0, 64, 0, 2, 0, 0, 0, // queues, depth, state, padding
		0, 0, 8, 0, 7, 0, 0, 0, // bytes of a request, number
		57, 48, 0, 0, 0, 0, 0, 0, // process, padding
		0xd8, 0, 0, 0, 0, 0, 0, 0, // features
		8, 7, 6, 5, 4, 3, 2, 1, // tag
		0, 0, 0, 0, 0, 0, 0, 0, // owner
		0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0,
	}
	i := Info{
		Queues: 2, Depth: 64, State: Quiesced, MaxRequest: 512 << 10, Number: 7, PID: 12345,
		Features: Recovery | RecoveryReissue | IoctlEncode | UserCopy, Tag: 0x0102030405060708,
	}
	got := bytes.Repeat([]byte{0xff}, InfoSize)
	i.Encode(got)
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, want)
	}
	if back, err := DecodeInfo(want); err != nil || back != i {
		t.Errorf("decoded %+v, %v, want %+v", back, err, i)
	}
}

func TestParams(t *testing.T) {
	for _, c := range []struct {
		p    Params
		want []byte
	}{
		{Params{Size: 1 << 20, MaxRequest: 64 << 10}, []byte{
			76, 0, 0, 0, 1, 0, 0, 0, // length, kinds
			1, 0, 0, 0, 9, 12, 12, 12, // read-only, shifts
			128, 0, 0, 0, 0, 0, 0, 0, // most sectors, chunk
			0, 8, 0, 0, 0, 0, 0, 0, // sectors
			40: 0, 75: 0,
		}},
		{Params{Size: 512, MaxRequest: 4096, Writable: true}, []byte{
			76, 0, 0, 0, 3, 0, 0, 0,
			12, 0, 0, 0, 9, 12, 12, 12, // cache, FUA
			8, 0, 0, 0, 0, 0, 0, 0,
			1, 0, 0, 0, 0, 0, 0, 0,
			0, 0, 0, 0, 0, 0, 0, 0, // virtual boundary
			0, 0, 0, 0, 0, 16, 0, 0, // discard: alignment, granularity
			0xf8, 0xff, 0x7f, 0, 0xf8, 0xff, 0x7f, 0, // most sectors of discard, to zero
			1, 0, 0, 0, // most ranges
			75: 0,
		}},
	} {
		got := bytes.Repeat([]byte{0xff}, ParamsSize)
		c.p.Encode(got)
		if !bytes.Equal(got, c.want) {
			t.Errorf("encoded\n%x, want\n%x", got, c.want)
		}
		if back, err := DecodeParams(got); err != nil || back != c.p {
			t.Errorf("decoded %+v, %v, want %+v", back, err, c.p)
		}
	}
	b := make([]byte, ParamsSize)
	(&Params{Size: 512}).Encode(b)
	b[4] |= typeDevT
	copy(b[60:], []byte{242, 0, 0, 0, 3, 0, 0, 0, 3, 1, 0, 0, 5, 0, 0, 0})
	if p, err := DecodeParams(b); err != nil || p.Major != 259 || p.Minor != 5 {
		t.Errorf("decoded %+v, %v, want disk 259:5", p, err)
	}
}

func TestRequest(t *testing.T) {
	descs := make([]byte, 4*descSize)
	copy(descs[descSize:], []byte{
		1, 0x20, 0, 0, 8, 0, 0, 0, // write, FUA; sectors
		0, 0, 0, 0, 1, 0, 0, 0, // first sector
		1, 2, 3, 4, 5, 6, 7, 8, // address
	})
	want := Request{Op: Write, FUA: true, Off: 2 << 40, Len: 4096}
	if got, err := DecodeRequest(descs, 1); err != nil || got != want {
		t.Errorf("decoded %+v, %v, want %+v", got, err, want)
	}
	copy(descs[2*descSize:], []byte{2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if got, err := DecodeRequest(descs, 2); err != nil || got != (Request{Op: Flush}) {
		t.Errorf("decoded %+v, %v, want a flush and nothing else", got, err)
	}
	for _, tag := range []int{-1, 4, 1 << 40} {
		if _, err := DecodeRequest(descs, tag); err == nil {
			t.Errorf("decoded a request of tag %d of 4", tag)
		}
	}
	descs[3*descSize+15] = 0x40
	if r, err := DecodeRequest(descs, 3); err == nil {
		t.Errorf("decoded %+v, whose offset no disk has", r)
	}
}

func TestFetch(t *testing.T) {
	p := make([]byte, 16)
	EncodeFetch(p, 3, 258, -5, 0x7f0011223344)
	if want := []byte{3, 0, 2, 1, 0xfb, 0xff, 0xff, 0xff, 0x44, 0x33, 0x22, 0x11, 0, 0x7f, 0, 0}; !bytes.Equal(p, want) {
		t.Errorf("encoded %x, want %x", p, want)
	}
	if first, next := Fetches(IoctlEncode); first != 0xc0107520 || next != 0xc0107521 {
		t.Errorf("commands %#x, %#x, want 0xc0107520, 0xc0107521", first, next)
	}
	if first, next := Fetches(0); first != 0x20 || next != 0x21 {
		t.Errorf("old commands %#x, %#x, want 0x20, 0x21", first, next)
	}
}

func TestOffsets(t *testing.T) {
	if got, want := DataOffset(3, 5), int64(0x80000000+3<<41+5<<25); got != want {
		t.Errorf("data of queue 3, tag 5 at %#x, want %#x", got, want)
	}
	if got := DescsSize(64); got%4096 != 0 || got < 64*24 {
		t.Errorf("descriptors of 64 requests take %d bytes", got)
	}
	if got := DescsOffset(2); got != 2*4096*24 {
		t.Errorf("descriptors of queue 2 at %d, want %d", got, 2*4096*24)
	}
}

func TestCommand(t *testing.T) {
	c := Command{Code: StartDevice, Ioctl: true, Number: 7, Data: 12345, Buf: make([]byte, 64)}
	if got := c.op(); got != 0xc0207506 {
		t.Errorf("start is command %#x, want 0xc0207506", got)
	}
	got := make([]byte, 32)
	c.encode(got, 0x7f0011223344)
	want := []byte{
		7, 0, 0, 0, 0xff, 0xff, 64, 0,
		0x44, 0x33, 0x22, 0x11, 0, 0x7f, 0, 0,
		0x39, 0x30, 0, 0, 0, 0, 0, 0,
		31: 0,
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, want)
	}
	for code, want := range map[Code]uint32{GetInfo: 0x80207502, GetParams: 0x80207509, GetFeatures: 0x80207513} {
		c.Code = code
		if got := c.op(); got != want {
			t.Errorf("%d is command %#x, want %#x", code, got, want)
		}
	}
	c.Code, c.Ioctl = StopDevice, false
	if got := c.op(); got != 0x07 {
		t.Errorf("to stop is old command %#x, want 0x07", got)
	}
}
