// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"os"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
)

// newTestConn returns a conn whose answers go nowhere.
func newTestConn(t testing.TB, size int64) *conn {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	d := newDevice(t.Context(), "test", t.TempDir(), backendtest.NewMemVolume(size), new(buffers))
	opts := Options{}
	opts.setDefaults()
	return newConn(int(null.Fd()), d, opts)
}

func readRequest(off uint64, size uint32) []byte {
	req := make([]byte, readEnd)
	native.PutUint32(req, readEnd)
	native.PutUint32(req[4:], opRead)
	native.PutUint64(req[48:], off)
	native.PutUint32(req[56:], size)
	return req
}

// TestReadAllocatesNothing guards the hot path.
func TestReadAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	c := newTestConn(t, 1<<20)
	req := readRequest(4096, 4096)
	if n := testing.AllocsPerRun(1000, func() { c.answer(req) }); n != 0 {
		t.Errorf("a 4 KiB read allocates %v times, want 0", n)
	}
}

// FuzzRead asks that no READ request, whatever it holds, reads outside the
// volume or the buffer.
func FuzzRead(f *testing.F) {
	f.Add(readRequest(0, 4096))
	f.Add(readRequest(1<<20-1, maxRequest))
	f.Add(readRequest(1<<63, maxRequest+1))
	f.Add(readRequest(513, 1)[:60])
	c := newTestConn(f, 1<<20)
	f.Fuzz(func(t *testing.T, req []byte) {
		b := c.buffers.get()
		defer c.buffers.put(b)
		r := c.read(b, req)
		if c.srv.dev.failed.Load() {
			t.Fatal(c.srv.dev.Err())
		}
		if r > maxRequest {
			t.Errorf("read %d bytes", r)
		}
	})
}
