// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A connFunc is a driver.
type connFunc func(Command) error

func (f connFunc) Do(_ context.Context, c Command) error { return f(c) }

// TestFeatures asks drivers, old and new, for features.
func TestFeatures(t *testing.T) {
	const all = Recovery | RecoveryReissue | IoctlEncode | UserCopy
	has := func(f Feature) connFunc {
		return func(c Command) error {
			if c.Code != GetFeatures || !c.Ioctl || len(c.Buf) != 8 {
				t.Errorf("asked with %+v", c)
			}
			binary.NativeEndian.PutUint64(c.Buf, uint64(f))
			return nil
		}
	}
	fails := func(err error) connFunc { return func(Command) error { return err } }
	for name, c := range map[string]struct {
		conn connFunc
		want Feature
	}{
		"all":      {has(all), all},
		"more":     {has(1<<63 | all), all},
		"some":     {has(IoctlEncode | Recovery), IoctlEncode | Recovery},
		"none":     {has(0), 0},
		"old":      {fails(unix.EINVAL), Recovery | RecoveryReissue},
		"very old": {fails(unix.EOPNOTSUPP), Recovery | RecoveryReissue},
		"oldest":   {fails(unix.Errno(524)), Recovery | RecoveryReissue},
	} {
		control, err := NewControl(t.Context(), c.conn, all)
		if err != nil || control.Features() != c.want {
			t.Errorf("%s: features %#x, %v, want %#x", name, control.Features(), err, c.want)
		}
	}
	if _, err := NewControl(t.Context(), fails(unix.EPERM), all); !errors.Is(err, unix.EPERM) {
		t.Errorf("a driver that refuses: %v, want EPERM", err)
	}
}

func FuzzInfo(f *testing.F) {
	valid := make([]byte, InfoSize)
	(&Info{Queues: 1, Depth: 2, MaxRequest: 4096, Number: 3, Tag: 4}).Encode(valid)
	f.Add(valid)
	f.Add(valid[:InfoSize-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := DecodeInfo(b)
		if err != nil {
			if i != (Info{}) {
				t.Errorf("%+v with error %v", i, err)
			}
			return
		}
		again := make([]byte, InfoSize)
		i.Encode(again)
		if back, err := DecodeInfo(again); err != nil || back != i {
			t.Errorf("%+v encoded is %+v, %v", i, back, err)
		}
	})
}

func FuzzParams(f *testing.F) {
	for _, p := range []Params{{Size: 512, MaxRequest: 4096}, {Size: 1 << 40, Writable: true}} {
		b := make([]byte, ParamsSize)
		p.Encode(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodeParams(b)
		if err == nil && (p.Size <= 0 || p.Size%512 != 0) || err != nil && p != (Params{}) {
			t.Errorf("decoded %+v, %v", p, err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
	f.Add(bytes.Repeat([]byte{0xff}, 2*descSize), 1)
	f.Fuzz(func(t *testing.T, b []byte, tag int) {
		r, err := DecodeRequest(b, tag)
		if r.Off < 0 || r.Off%512 != 0 || r.Len < 0 || r.Len%512 != 0 || r.Off+int64(r.Len) < 0 {
			t.Errorf("decoded %+v, %v", r, err)
		}
	})
}
