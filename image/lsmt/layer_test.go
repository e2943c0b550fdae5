// SPDX-License-Identifier: Apache-2.0

package lsmt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// smallLayer returns a sealed layer of 1 MiB with sector i holding byte i for
// the given sectors.
func smallLayer(t testing.TB, sectors ...int64) []byte {
	t.Helper()
	d := newPath(t)
	w, err := lsmt.Create(d.data, d.index, lsmt.CreateOptions{VirtualSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	disk := overlay(t, nil, w)
	for _, s := range sectors {
		if _, err := disk.WriteAt(t.Context(), bytes.Repeat([]byte{byte(s)}, 512), s*512); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := lsmt.Commit(t.Context(), &b, w, lsmt.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	closeAll(t, disk)
	return b.Bytes()
}

func TestOpenRefuses(t *testing.T) {
	good := smallLayer(t, 1, 2, 5)
	trailer := len(good) - 4096
	index := int(binary.LittleEndian.Uint64(good[trailer+32:]))
	set := func(off int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[off:], v); return b }
	}
	for _, tc := range []struct {
		name string
		hurt func([]byte) []byte
		want string
	}{
		{"empty", func(b []byte) []byte { return nil }, "trailer"},
		{"truncated", func(b []byte) []byte { return b[:trailer+100] }, "magic"},
		{"trailer is a header", set(trailer+28, 7), "flags"},
		{"not sealed", set(trailer+28, 2), "flags"},
		{"index before the data", set(trailer+32, 8), "index_offset"},
		{"index behind the trailer", set(trailer+32, uint64(len(good))), "index_offset"},
		{"index offset wraps", set(trailer+32, 1<<63), "index_offset"},
		{"too many records", set(trailer+40, 1<<40), "index_size"},
		{"records wrap", set(trailer+40, 1<<60), "index_size"},
		{"size over 64 TiB", set(trailer+48, 1<<50), "virtual_size"},
		{"size of half a sector", set(trailer+48, 256), "virtual_size"},
		{"record of no length", set(index, 1), "length"},
		{"record past the volume", set(index, 1<<50-2|5<<50), "length"},
		{"record into the header", set(index+8, 1), "moffset"},
		{"record past the data", set(index+8, 1<<30), "moffset"},
		{"zeroed record past the data", set(index+8, 1<<30|1<<55), "moffset"},
		{"records not sorted", set(index+16, 0|1<<50), "offset"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := lsmt.Open(t.Context(), newBlob(tc.hurt(bytes.Clone(good))))
			var c *lsmt.CorruptError
			if l != nil || !errors.Is(err, lsmt.ErrCorrupt) || !errors.As(err, &c) || c.Field != tc.want {
				t.Errorf("got %v, %v; want ErrCorrupt in %s", l, err, tc.want)
			}
		})
	}
}

// TestHeaderIsReadOnDemand: a layer opens from its end alone, and its header is
// checked where somebody asks for it.
func TestHeaderIsReadOnDemand(t *testing.T) {
	good := smallLayer(t, 1, 2, 5)
	for at, field := range map[int]string{0: "magic", 28: "flags"} {
		bad := bytes.Clone(good)
		bad[at] = 0
		l := openLayer(t, bad)
		_, err := l.Header(t.Context())
		var c *lsmt.CorruptError
		if !errors.Is(err, lsmt.ErrCorrupt) || !errors.As(err, &c) || c.Field != field {
			t.Errorf("got %v, want ErrCorrupt in %s", err, field)
		}
		closeAll(t, l)
	}
}

// TestTolerates: what the reference writes, or once wrote, that looks odd.
func TestTolerates(t *testing.T) {
	good := smallLayer(t, 1, 2, 5)
	trailer := len(good) - 4096
	index := int(binary.LittleEndian.Uint64(good[trailer+32:]))
	for _, tc := range []struct {
		name string
		off  int
		v    byte
	}{
		{"structure size", 24, 0xff},
		{"unknown flag", 29, 0xff},
		{"reserved bytes", 130, 0xff},
		{"version", 132, 9},
		{"padding", 2000, 0xff},
		{"tag of a merged layer", index + 15, 7},
		{"record past the volume's size", trailer + 50, 0}, // a size of 0
	} {
		b := bytes.Clone(good)
		b[tc.off] = tc.v
		got := make([]byte, 512)
		s := stackOf(t, smallLayer(t, 9), b)
		if _, err := s.ReadAt(t.Context(), got, 512); err != nil || got[0] != 1 {
			t.Errorf("%s: got %d, %v", tc.name, got[0], err)
		}
	}
}

// TestManyLayers stacks as many layers as the format can.
func TestManyLayers(t *testing.T) {
	var data [][]byte
	for i := range int64(lsmt.MaxLayers) {
		data = append(data, smallLayer(t, i, 1000))
	}
	s := stackOf(t, data...)
	got := make([]byte, 512)
	for i := range int64(lsmt.MaxLayers) {
		if _, err := s.ReadAt(t.Context(), got, i*512); err != nil || got[511] != byte(i) {
			t.Fatalf("sector %d of layer %d: got %d, %v", i, i, got[511], err)
		}
	}
	var layers []*lsmt.Layer
	for range lsmt.MaxLayers + 1 {
		layers = append(layers, openLayer(t, data[0]))
	}
	if _, err := lsmt.Merge(layers); err == nil || !strings.Contains(err.Error(), "256") {
		t.Errorf("got %v for 256 layers, want an error with the number", err)
	}
}

func TestShortDataIsAnError(t *testing.T) {
	data := smallLayer(t, 1)
	blob := newBlob(data)
	l, err := lsmt.Open(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	s, err := lsmt.Merge([]*lsmt.Layer{l})
	if err != nil {
		t.Fatal(err)
	}
	blob.data = data[:4100] // the source shrinks after it was opened
	if _, err := s.ReadAt(t.Context(), make([]byte, 512), 512); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Errorf("got %v, want an error naming offset 4096", err)
	}
}

// randomStack maps n scattered sectors over three layers.
func randomStack(t testing.TB, n int) *lsmt.Stack {
	rnd := rand.New(rand.NewPCG(3, 3))
	var data [][]byte
	for range 3 {
		var sectors []int64
		for range n / 3 {
			sectors = append(sectors, rnd.Int64N(2048))
		}
		data = append(data, smallLayer(t, sectors...))
	}
	return stackOf(t, data...)
}

func TestReadAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := randomStack(t, 900)
	p := make([]byte, 4096)
	var off int64
	allocs := testing.AllocsPerRun(500, func() {
		if _, err := s.ReadAt(t.Context(), p, off%(1<<20)); err != nil {
			t.Fatal(err)
		}
		off += 4096
	})
	if allocs != 0 {
		t.Errorf("a 4 KiB read allocates %v times", allocs)
	}
}

// BenchmarkReadHit4K reads 4 KiB at random through a stack of three layers in
// memory, beside a plain copy of as much.
func BenchmarkReadHit4K(b *testing.B) {
	s := randomStack(b, 900)
	p, src := make([]byte, 4096), make([]byte, 1<<20)
	var perCopy float64
	b.Run("copy", func(b *testing.B) {
		rnd := rand.New(rand.NewPCG(1, 1))
		b.SetBytes(4096)
		for b.Loop() {
			copy(p, src[rnd.Int64N(256)*4096:])
		}
		perCopy = float64(b.Elapsed()) / float64(b.N)
	})
	b.Run("stack", func(b *testing.B) {
		rnd := rand.New(rand.NewPCG(1, 1))
		b.SetBytes(4096)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.ReadAt(b.Context(), p, rnd.Int64N(256)*4096); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed())/float64(b.N)/perCopy, "x-of-copy")
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(smallLayer(f, 1, 2, 5))
	f.Add(smallLayer(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := lsmt.Open(t.Context(), newBlob(data))
		if (l == nil) != (err != nil) {
			t.Fatalf("got %v with error %v", l, err)
		}
		if err != nil {
			return
		}
		s, err := lsmt.Merge([]*lsmt.Layer{l})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.ReadAt(t.Context(), make([]byte, 1<<16), 0) // any error, no panic
		closeAll(t, s)
	})
}
