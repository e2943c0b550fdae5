// SPDX-License-Identifier: Apache-2.0

package zfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// rawCRC is the format's checksum, written anew from its description.
func rawCRC(seed uint32, p []byte) uint32 {
	return ^crc32.Update(^seed, crc32.MakeTable(crc32.Castagnoli), p)
}

// reseal sets the digests of header, trailer and index right after an edit.
func reseal(z []byte) {
	t := z[len(z)-512:]
	if off, n := binary.LittleEndian.Uint64(t[40:]), binary.LittleEndian.Uint64(t[48:]); off < uint64(len(z)) && n < uint64(len(z)) && off+n*4 <= uint64(len(z)) {
		binary.LittleEndian.PutUint32(t[64:], rawCRC(0, z[off:off+n*4]))
	}
	for _, h := range [][]byte{z[:512], t} {
		clear(h[28:32])
		binary.LittleEndian.PutUint32(h[28:], rawCRC(0, h))
	}
}

func TestHostileFields(t *testing.T) {
	good := compress(t, mixed(100_000), zfile.Options{})
	index := int(binary.LittleEndian.Uint64(good[len(good)-512+40:]))
	u32 := func(off int, v uint32) func(z, trailer []byte) {
		return func(_, trailer []byte) { binary.LittleEndian.PutUint32(trailer[off:], v) }
	}
	u64 := func(off int, v uint64) func(z, trailer []byte) {
		return func(_, trailer []byte) { binary.LittleEndian.PutUint64(trailer[off:], v) }
	}
	entry := func(i int, v uint32) func(z, trailer []byte) {
		return func(z, _ []byte) { binary.LittleEndian.PutUint32(z[index+4*i:], v) }
	}
	tests := map[string]struct {
		edit func(z, trailer []byte)
		want error
	}{
		"block size 0":               {u32(72, 0), zfile.ErrCorrupt},
		"block size 3":               {u32(72, 3), zfile.ErrCorrupt},
		"block size 256":             {u32(72, 256), zfile.ErrCorrupt},
		"block size 1 MiB":           {u32(72, 1<<20), zfile.ErrCorrupt},
		"block size 2 GiB":           {u32(72, 1<<31), zfile.ErrCorrupt},
		"block size 8 KiB":           {u32(72, 8<<10), zfile.ErrCorrupt},
		"algorithm 0":                {func(_, b []byte) { b[76] = 0 }, errors.ErrUnsupported},
		"algorithm 9":                {func(_, b []byte) { b[76] = 9 }, errors.ErrUnsupported},
		"dictionary":                 {func(_, b []byte) { b[78] = 1 }, errors.ErrUnsupported},
		"dictionary size":            {u32(84, 1<<31), zfile.ErrCorrupt},
		"size 0":                     {u64(56, 0), zfile.ErrCorrupt},
		"size is one block more":     {u64(56, 104_000), zfile.ErrCorrupt},
		"size max":                   {u64(56, math.MaxUint64), zfile.ErrCorrupt},
		"size negative":              {u64(56, 1<<63), zfile.ErrCorrupt},
		"blocks 0":                   {u64(48, 0), zfile.ErrCorrupt},
		"blocks 1e9":                 {u64(48, 1e9), zfile.ErrCorrupt},
		"blocks max":                 {u64(48, math.MaxUint64), zfile.ErrCorrupt},
		"blocks and size 1e9 blocks": {func(_, b []byte) { u64(48, 1e9)(nil, b); u64(56, 4096e9)(nil, b) }, zfile.ErrCorrupt},
		"blocks wrap in bytes":       {func(_, b []byte) { u64(48, 1<<50)(nil, b); u64(56, 1<<62)(nil, b) }, zfile.ErrCorrupt},
		"index offset 0":             {u64(40, 0), zfile.ErrCorrupt},
		"index offset early":         {u64(40, uint64(index-4)), zfile.ErrCorrupt},
		"index offset late":          {u64(40, uint64(index+4)), zfile.ErrCorrupt},
		"index offset past end":      {u64(40, 1<<40), zfile.ErrCorrupt},
		"index offset max":           {u64(40, math.MaxUint64), zfile.ErrCorrupt},
		"entry 0":                    {entry(3, 0), zfile.ErrCorrupt},
		"entry is a CRC alone":       {entry(3, 4), zfile.ErrCorrupt},
		"entry max":                  {entry(3, math.MaxUint32), zfile.ErrCorrupt},
		"entry above the bound":      {entry(3, 4133), zfile.ErrCorrupt},
		"entries shifted": {func(z, _ []byte) {
			z[index]++
			z[index+4]--
		}, nil}, // seen when block 0 is read
		"trailer is a header":    {func(_, b []byte) { b[32] |= 1 }, zfile.ErrCorrupt},
		"trailer is not data":    {func(_, b []byte) { b[32] &^= 2 }, zfile.ErrCorrupt},
		"trailer is unsealed":    {func(_, b []byte) { b[32] &^= 4 }, zfile.ErrCorrupt},
		"header is a trailer":    {func(z, _ []byte) { z[32] &^= 1 }, zfile.ErrCorrupt},
		"header: block size 0":   {func(z, _ []byte) { clear(z[72:76]) }, zfile.ErrCorrupt},
		"header: index at 0":     {func(z, _ []byte) { z[32] |= 8 }, zfile.ErrCorrupt},
		"checksums switched off": {func(_, b []byte) { b[88] = 0 }, nil}, // LZ4 chokes on the CRC
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			z := bytes.Clone(good)
			tt.edit(z, z[len(z)-512:])
			reseal(z)
			r, err := zfile.Open(t.Context(), memBlob(z))
			if tt.want != nil {
				if !errors.Is(err, tt.want) || r != nil {
					t.Errorf("got %v, %v; want %v", r, err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Verify(t.Context(), nil); !errors.Is(err, zfile.ErrCorrupt) {
				t.Errorf("Verify: %v, want ErrCorrupt", err)
			}
		})
	}
}

// No byte but those that mean nothing can change unnoticed: with a bit of each
// byte flipped in turn, either reading fails or the content is right.
func TestEveryFlippedByte(t *testing.T) {
	raw := mixed(9000)
	for _, a := range algorithms {
		good := compress(t, raw, zfile.Options{Algorithm: a})
		for i := range good {
			z := bytes.Clone(good)
			z[i] ^= 1 << (i % 8)
			if got, err := readHostile(t.Context(), z); err == nil && !bytes.Equal(got, raw) {
				t.Fatalf("%s: bit %d of byte %d: other content and no error", a, i%8, i)
			}
		}
	}
}

func TestEveryTruncation(t *testing.T) {
	for _, a := range algorithms {
		good := compress(t, mixed(9000), zfile.Options{Algorithm: a})
		for n := range len(good) {
			if _, err := readHostile(t.Context(), good[:n]); !errors.Is(err, zfile.ErrCorrupt) {
				t.Fatalf("%s cut to %d of %d bytes: got %v, want ErrCorrupt", a, n, len(good), err)
			}
		}
	}
}

// lyingBlob says that it is longer than it is, as a registry may.
type lyingBlob struct {
	memBlob
	size int64
}

func (l lyingBlob) Size() int64 { return l.size }

// A header must not make the reader allocate for more than there is to read:
// for an index this long the test would die.
func TestHugeIndexOfALyingBlob(t *testing.T) {
	z := compress(t, nil, zfile.Options{})
	h := z[:512]
	h[32] |= 8
	binary.LittleEndian.PutUint64(h[40:], 512)
	binary.LittleEndian.PutUint64(h[48:], 1<<38)
	binary.LittleEndian.PutUint64(h[56:], 1<<50)
	reseal(z)
	if _, err := zfile.Open(t.Context(), lyingBlob{memBlob(z), 1 << 50}); err == nil {
		t.Error("an index of a TiB was read from a KiB")
	}
}

// Files of 2021 carry memory garbage in every byte without a meaning.
func TestGarbageWithoutMeaningIsIgnored(t *testing.T) {
	raw := mixed(10_000)
	z := compress(t, raw, zfile.Options{})
	for _, h := range [][]byte{z[:512], z[len(z)-512:]} {
		for _, span := range [][2]int{{24, 32}, {33, 40}, {68, 72}, {77, 78}, {79, 84}, {89, 512}} {
			for i := span[0]; i < span[1]; i++ {
				h[i] = 0xDB
			}
		}
		h[32] &^= 16 // no digest
	}
	for i := 40; i < 68; i++ {
		z[i] = 0xDB // index fields of a header that does not have them
	}
	got, err := readHostile(t.Context(), z)
	if err != nil || !bytes.Equal(got, raw) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// readHostile reads the ZFile z whole, at most 1 MiB.
func readHostile(ctx context.Context, z []byte) ([]byte, error) {
	r, err := zfile.Open(ctx, memBlob(z))
	if err != nil {
		return nil, err
	}
	p := make([]byte, min(r.Size(), 1<<20))
	if _, err := r.ReadAt(ctx, p, 0); err != nil {
		return nil, err
	}
	return p, r.Verify(ctx, nil)
}

// FuzzOpen wants no panic on any file, and what the Writer made of any input
// to be read back.
func FuzzOpen(f *testing.F) {
	raw := mixed(9000)
	for _, a := range algorithms {
		z := compress(f, raw, zfile.Options{Algorithm: a})
		f.Add(z)
		f.Add(compress(f, raw, zfile.Options{Algorithm: a, NoChecksum: true}))
		f.Add(z[:len(z)-512])
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, z := range map[string][]byte{"as is": data, "resealed": sealed(data)} {
			if _, err := readHostile(t.Context(), z); err != nil && !errors.Is(err, zfile.ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s: %v of no class", name, err)
			}
		}
		for _, a := range algorithms {
			z := compress(t, data, zfile.Options{Algorithm: a, Workers: 1})
			if got := readAll(t, open(t, memBlob(z))); !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes read back as %d others", a, len(data), len(got))
			}
		}
	})
}

// TestLocate: a ZFile is found by its end, whatever lies around it.
func TestLocate(t *testing.T) {
	z := compress(t, mixed(9000), zfile.Options{})
	cut := func(n int) []byte { return z[len(z)-n:] }
	unsure := bytes.Clone(z)
	unsure[len(z)-512+32] &^= 16 // no digest
	flipped := bytes.Clone(z)
	flipped[len(z)-512+40]++
	for name, tt := range map[string]struct {
		tail   []byte
		before int // bytes
		found  bool
	}{
		"all of it":      {z, 0, true},
		"trailer alone":  {cut(512), 0, true},
		"in a tar":       {append(cut(600), make([]byte, 1300)...), 1536, true},
		"trailer cut":    {cut(511), 0, false},
		"header alone":   {z[:512], 0, false},
		"no digest":      {unsure, 0, false},
		"wrong digest":   {flipped, 0, false},
		"end of another": {cut(512), 1000 - len(z), false},
		"nothing":        {nil, 0, false},
	} {
		behind := int64(max(len(tt.tail)-600, 0))
		if name != "in a tar" {
			behind = 0
		}
		var want zfile.Place
		if tt.found {
			off := int64(tt.before)
			want = zfile.Place{Off: off, Size: int64(len(z)), Index: off + int64(binary.LittleEndian.Uint64(z[len(z)-512+40:]))}
		}
		got, ok := zfile.Locate(tt.tail, int64(tt.before+len(z))+behind)
		if ok != tt.found || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, ok, want)
		}
	}
}

// FuzzLocate wants what is found to lie in the blob.
func FuzzLocate(f *testing.F) {
	z := compress(f, mixed(9000), zfile.Options{})
	f.Add(z, int64(0))
	f.Add(append(z[len(z)-512:], make([]byte, 1024)...), int64(len(z)))
	f.Fuzz(func(t *testing.T, tail []byte, before int64) {
		if before < 0 || before > 1<<60 {
			return
		}
		size := before + int64(len(tail))
		for _, tail := range [][]byte{tail, sealed(tail)} {
			p, ok := zfile.Locate(tail, size)
			if ok && (p.Off < 0 || p.Size < 1024 || p.Size > size-p.Off || p.Index < p.Off || p.Index > p.Off+p.Size) {
				t.Errorf("found %+v in a blob of %d", p, size)
			}
		}
	})
}

// sealed returns a copy of z with its digests right, so that fuzzing gets
// past them.
func sealed(z []byte) []byte {
	z = bytes.Clone(z)
	if len(z) >= 1024 {
		reseal(z)
	}
	return z
}

func ExampleNewWriter() {
	var out bytes.Buffer
	w, _ := zfile.NewWriter(&out, zfile.Options{Algorithm: zfile.Zstd})
	_, _ = w.Write(bytes.Repeat([]byte("layer "), 10_000))
	_ = w.Close()

	r, _ := zfile.Open(context.Background(), memBlob(out.Bytes()))
	p := make([]byte, 5)
	_, _ = r.ReadAt(context.Background(), p, 42_000)
	fmt.Printf("%s of %d bytes in %d blocks\n", p, r.Size(), r.Info().Blocks)
	// Output: layer of 60000 bytes in 15 blocks
}
