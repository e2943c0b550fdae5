// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

const (
	headSize   = 64
	recordSize = 20
	pieceSize  = 64 << 10
)

// reseal sets the CRCs and the size of an index right after an edit.
func reseal(x []byte) []byte {
	if len(x) < headSize {
		return x
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint64(x[32:], uint64(len(x)))
	binary.LittleEndian.PutUint32(x[56:], crc32.Checksum(x[headSize:], table))
	binary.LittleEndian.PutUint32(x[60:], crc32.Checksum(x[:60], table))
	return x
}

// readHostile reads the content of z by index, at most 4 MiB.
func readHostile(ctx context.Context, z, index []byte) ([]byte, error) {
	b, err := zstdidx.Open(ctx, memBlob(z), bytes.NewReader(index), int64(len(index)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }()
	p := make([]byte, min(b.Size(), 4<<20))
	_, err = b.ReadAt(ctx, p, 0)
	return p, err
}

// stateOf returns where the state of the first span that has one begins, and
// where that span's record does.
func stateOf(t testing.TB, x []byte) (state, record int) {
	t.Helper()
	n := int(binary.LittleEndian.Uint32(x[12:]))
	state = headSize + n*recordSize
	for i := n - 1; i >= 0; i-- {
		r := headSize + i*recordSize
		if binary.LittleEndian.Uint32(x[r+16:]) > 0 {
			record = r
		}
		state += 4 * int((binary.LittleEndian.Uint32(x[r+12:])+pieceSize-1)/pieceSize)
	}
	if record == 0 {
		t.Fatal("no span with a state")
	}
	return state, record
}

func TestHostileIndexes(t *testing.T) {
	want := source()
	z := goStream(zstd.WithEncoderLevel(zstd.SpeedBestCompression))(t, want)
	_, good := indexed(t, z, small)
	state, record := stateOf(t, good)
	sums := headSize + recordSize*int(binary.LittleEndian.Uint32(good[12:]))
	u32 := func(off int, v uint32) func(x []byte) []byte {
		return func(x []byte) []byte { binary.LittleEndian.PutUint32(x[off:], v); return x }
	}
	u64 := func(off int, v uint64) func(x []byte) []byte {
		return func(x []byte) []byte { binary.LittleEndian.PutUint64(x[off:], v); return x }
	}
	tests := map[string]struct {
		edit func(x []byte) []byte
		want error // of Open, or of reading
	}{
		"magic":                   {func(x []byte) []byte { x[3]++; return x }, zstdidx.ErrCorrupt},
		"version 2":               {u32(8, 2), zstdidx.ErrCorrupt},
		"no spans":                {u32(12, 0), zstdidx.ErrCorrupt},
		"a span less":             {u32(12, binary.LittleEndian.Uint32(good[12:])-1), zstdidx.ErrCorrupt},
		"spans max":               {u32(12, math.MaxUint32), zstdidx.ErrCorrupt},
		"zstd file shorter":       {u64(16, 1000), zstdidx.ErrCorrupt},
		"zstd file longer":        {u64(16, uint64(len(z)+1)), zstdidx.ErrChanged},
		"zstd file max":           {u64(16, math.MaxUint64), zstdidx.ErrCorrupt},
		"content longer":          {u64(24, uint64(len(want)+1)), zstdidx.ErrCorrupt},
		"content max":             {u64(24, math.MaxUint64), zstdidx.ErrCorrupt},
		"span before the last":    {u64(record, 0), zstdidx.ErrCorrupt},
		"span past the end":       {u64(record, uint64(len(z))), zstdidx.ErrCorrupt},
		"span at max":             {u64(record, math.MaxUint64), zstdidx.ErrCorrupt},
		"span elsewhere":          {u64(record, binary.LittleEndian.Uint64(good[record:])+1), zstdidx.ErrCorrupt},
		"span of nothing":         {u32(record+12, 0), zstdidx.ErrCorrupt},
		"span of 4 GiB":           {u32(record+12, math.MaxUint32), zstdidx.ErrCorrupt},
		"span stored in nothing":  {u32(record+8, 0), zstdidx.ErrCorrupt},
		"span stored in 4 GiB":    {u32(record+8, math.MaxUint32), zstdidx.ErrCorrupt},
		"state of 4 GiB":          {u32(record+16, math.MaxUint32), zstdidx.ErrCorrupt},
		"state a byte longer":     {u32(record+16, binary.LittleEndian.Uint32(good[record+16:])+1), zstdidx.ErrCorrupt},
		"CRC":                     {func(x []byte) []byte { x[sums]++; return x }, zstdidx.ErrChanged},
		"last CRC":                {func(x []byte) []byte { x[state-4]++; return x }, zstdidx.ErrChanged},
		"a CRC less":              {func(x []byte) []byte { return append(x[:sums:sums], x[sums+4:]...) }, zstdidx.ErrCorrupt},
		"records and no CRC":      {func(x []byte) []byte { return x[:sums] }, zstdidx.ErrCorrupt},
		"window of 4 GiB":         {u32(state, math.MaxUint32), zstdidx.ErrChanged},
		"window of nothing":       {u32(state, 0), zstdidx.ErrChanged},
		"flags":                   {func(x []byte) []byte { x[state+4] = 2; return x }, zstdidx.ErrChanged},
		"table of unknown kind":   {func(x []byte) []byte { x[state+5] = 9; return x }, zstdidx.ErrChanged},
		"table too long":          {func(x []byte) []byte { x[state+9] = 255; return x }, zstdidx.ErrChanged},
		"padding":                 {func(x []byte) []byte { x[state+15] = 1; return x }, zstdidx.ErrChanged},
		"more extents than bytes": {u32(state+28, math.MaxUint32), zstdidx.ErrChanged},
		"history of 4 GiB":        {u32(state+32, math.MaxUint32), zstdidx.ErrChanged},
		"history a byte longer":   {u32(state+32, binary.LittleEndian.Uint32(good[state+32:])+1), zstdidx.ErrChanged},
		"packed in 4 GiB":         {u32(state+36, math.MaxUint32), zstdidx.ErrChanged},
		"cut":                     {func(x []byte) []byte { return x[:len(x)-1] }, zstdidx.ErrCorrupt},
		"longer":                  {func(x []byte) []byte { return append(x, 0) }, zstdidx.ErrCorrupt},
		"empty":                   {func([]byte) []byte { return nil }, zstdidx.ErrCorrupt},
		"header alone":            {func(x []byte) []byte { return x[:headSize] }, zstdidx.ErrCorrupt},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := readHostile(t.Context(), z, reseal(tt.edit(bytes.Clone(good)))); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// Whatever bit of the zstd file or of the index is not as it was: what is read
// is right, or an error.
func TestFlippedBits(t *testing.T) {
	want := source()[:160_000]
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, m := range []maker{{"go", goStream()}, {"chunked", chunked}, {"frames", framed(goAtOnce())}} {
		z := m.make(t, want)
		_, index := indexed(t, z, small)
		for range 40 {
			for what, seal := range map[string]func([]byte) []byte{
				"zstd file":      nil,
				"index":          func(x []byte) []byte { return x },
				"resealed index": reseal,
			} {
				z, index := bytes.Clone(z), bytes.Clone(index)
				p := z
				if seal != nil {
					p = index
				}
				p[rnd.IntN(len(p))] ^= 1 << rnd.IntN(8)
				if seal != nil {
					seal(index)
				}
				got, err := readHostile(t.Context(), z, index)
				if err == nil && !bytes.Equal(got, want) {
					t.Fatalf("%s: a bit of the %s: other content and no error", m.name, what)
				}
				if err != nil && !errors.Is(err, zstdidx.ErrCorrupt) && !errors.Is(err, zstdidx.ErrChanged) {
					t.Fatalf("%s: a bit of the %s: %v of no class", m.name, what, err)
				}
			}
		}
	}
}

func TestTruncatedStreams(t *testing.T) {
	want := source()[:200_000]
	z := goStream()(t, want)
	for n := 1; n < len(z); n += 1 + n/20 {
		got, err := io.ReadAll(zstdidx.NewReader(bytes.NewReader(z[:n]), small))
		if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(want, got) {
			t.Fatalf("cut to %d of %d bytes: got %d, %v; want io.ErrUnexpectedEOF", n, len(z), len(got), err)
		}
	}
}

func TestStreamsThatAreRefused(t *testing.T) {
	frame := func(header ...byte) []byte {
		return append([]byte{0x28, 0xb5, 0x2f, 0xfd}, header...)
	}
	flipped := goAtOnce()(t, source()) // with a checksum
	flipped[len(flipped)-1] ^= 1
	short := goAtOnce()(t, source()[:70_000])
	binary.LittleEndian.PutUint16(short[5:], 1)
	for name, tt := range map[string]struct {
		z    []byte
		want error
	}{
		"text":                    {[]byte("no zstd stream"), zstdidx.ErrCorrupt},
		"text behind a frame":     {append(goAtOnce()(t, nil), "text"...), zstdidx.ErrCorrupt},
		"dictionary":              {frame(0x21, 7, 1, 1, 0, 0), errors.ErrUnsupported},
		"window of 3.75 TiB":      {frame(0, 0xff, 1, 0, 0), errors.ErrUnsupported},
		"single segment of 2^62":  {frame(0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40, 1, 0, 0), errors.ErrUnsupported},
		"content of 2^63":         {frame(0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 1, 0, 0), zstdidx.ErrCorrupt},
		"reserved bit":            {frame(0x28, 0, 1, 0, 0), zstdidx.ErrCorrupt},
		"reserved block":          {frame(0, 0, 7, 0, 0), zstdidx.ErrCorrupt},
		"block above the window":  {frame(0, 0, 3, 0x7f, 0, 1), zstdidx.ErrCorrupt},
		"checksum":                {flipped, zstdidx.ErrCorrupt},
		"content unlike its size": {short, zstdidx.ErrCorrupt},
	} {
		if _, err := io.ReadAll(zstdidx.NewReader(bytes.NewReader(tt.z), small)); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
}

// FuzzReader wants of any stream what another decoder makes of it, or an error,
// and the same by its index.
func FuzzReader(f *testing.F) {
	for _, p := range [][]byte{nil, source()[:20_000], make([]byte, 3000), source()[:300]} {
		f.Add(goStream()(f, p))
		f.Add(goAtOnce(zstd.WithEncoderLevel(zstd.SpeedBestCompression))(f, p))
		f.Add(goAtOnce(zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))(f, p))
		f.Add(chunked(f, p))
	}
	f.Fuzz(func(t *testing.T, z []byte) {
		const most = 2 << 20
		r := zstdidx.NewReader(bytes.NewReader(z), small)
		got, err := io.ReadAll(io.LimitReader(r, most))
		if err != nil || len(got) == most {
			return
		}
		k, err := zstd.NewReader(bytes.NewReader(z), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if want, err := io.ReadAll(k); err == nil && !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, others than the %d of another decoder", len(got), len(want))
		}
		var index bytes.Buffer
		if _, err := r.WriteIndex(&index); err != nil {
			t.Fatal(err)
		}
		if again, err := readHostile(t.Context(), z, index.Bytes()); err != nil || !bytes.Equal(again, got) {
			t.Errorf("by the index %d bytes of %d, %v", len(again), len(got), err)
		}
	})
}

// FuzzOpen wants no panic and no error without a class of any index, nor of any
// zstd file.
func FuzzOpen(f *testing.F) {
	for _, m := range []maker{{"go", goStream()}, {"chunked", chunked}} {
		z := m.make(f, source()[:200_000])
		_, index := indexed(f, z, small)
		f.Add(z, index)
	}
	z := goStream(zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(1<<20))(f, contents()["far"])
	_, index := indexed(f, z, small)
	f.Add(z, index)
	f.Fuzz(func(t *testing.T, z, index []byte) {
		for name, x := range map[string][]byte{"as is": index, "resealed": reseal(bytes.Clone(index))} {
			_, err := readHostile(t.Context(), z, x)
			if err != nil && !errors.Is(err, zstdidx.ErrCorrupt) && !errors.Is(err, zstdidx.ErrChanged) {
				t.Errorf("%s: %v of no class", name, err)
			}
		}
	})
}
