// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
)

// rawCRC is the reference's checksum, written anew from its description.
func rawCRC(p []byte) uint32 {
	return ^crc32.Update(^uint32(0), crc32.MakeTable(crc32.Castagnoli), p)
}

// reseal sets the CRC of an index's header right after an edit.
func reseal(x []byte) {
	if len(x) >= 333 {
		binary.LittleEndian.PutUint32(x[329:], rawCRC(x[:329]))
	}
}

// A refPoint is an entry of an index.
type refPoint struct {
	de, en, win int64
	bits        uint8
	winLen      uint32
}

// points returns the entries of index x, and its windows, as the description
// of the reference's format has them.
func points(t testing.TB, x []byte) (all []refPoint, windows [][]byte) {
	t.Helper()
	area := inflated(t, x[binary.LittleEndian.Uint64(x[313:]):])
	for ; len(area) > 0; area = area[29:] {
		u64 := func(off int) int64 { return int64(binary.LittleEndian.Uint64(area[off:])) }
		p := refPoint{u64(0), u64(8), u64(16), area[24], binary.LittleEndian.Uint32(area[25:])}
		all = append(all, p)
		w := inflated(t, x[p.win:p.win+int64(p.winLen)])
		if len(w) != 32768 {
			t.Fatalf("window of %d bytes", len(w))
		}
		windows = append(windows, w)
	}
	return all, windows
}

func inflated(t testing.TB, p []byte) []byte {
	t.Helper()
	z, err := zlib.NewReader(bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// encode returns an index of points as the reference writes it, compressed or
// not. Of x it takes the header.
func encode(x []byte, packed bool, all []refPoint, windows [][]byte) []byte {
	pack := func(p []byte) []byte {
		if !packed {
			return p
		}
		var out bytes.Buffer
		w := zlib.NewWriter(&out)
		_, _ = w.Write(p) // never fails
		_ = w.Close()
		return out.Bytes()
	}
	out, area := slices.Clone(x[:333]), []byte(nil)
	clear(out[57:313])
	for i, p := range all {
		w := pack(windows[i])
		area = binary.LittleEndian.AppendUint64(area, uint64(p.de))
		area = binary.LittleEndian.AppendUint64(area, uint64(p.en))
		area = binary.LittleEndian.AppendUint64(area, uint64(len(out)))
		area = append(area, p.bits)
		area = binary.LittleEndian.AppendUint32(area, uint32(len(w)))
		out = append(out, w...)
	}
	area = pack(area)
	binary.LittleEndian.PutUint64(out[313:], uint64(len(out)))
	binary.LittleEndian.PutUint64(out[321:], uint64(len(area)))
	out = append(out, area...)
	binary.LittleEndian.PutUint64(out[41:], uint64(len(out)))
	binary.LittleEndian.PutUint64(out[25:], uint64(len(all)))
	out[10] = 0
	if packed {
		out[10] = 1
	}
	reseal(out)
	return out
}

// foreign returns the index that the reference makes of z: with whole windows
// and no checksums.
func foreign(t testing.TB, z []byte, span int64) []byte {
	t.Helper()
	content, x := build(t, z, gzidx.Options{Span: span})
	all, windows := points(t, x)
	for i, p := range all {
		clear(windows[i])
		from := max(p.de-32768, 0)
		copy(windows[i][32768-(p.de-from):], content[from:p.de])
	}
	return encode(x, true, all, windows)
}

func TestForeignIndex(t *testing.T) {
	content := layerLike(t, 1<<20)
	z := gzipped(t, content, 6)
	packed := foreign(t, z, 64<<10)
	all, windows := points(t, packed)
	for name, x := range map[string][]byte{"packed": packed, "plain": encode(packed, false, all, windows)} {
		info, err := gzidx.ReadInfo(bytes.NewReader(x), int64(len(x)))
		if want := (gzidx.Info{Size: int64(len(content)), CompressedSize: int64(len(z))}); info != want || err != nil {
			t.Errorf("%s: info is %+v, %v, want %+v", name, info, err, want)
		}
		compare(t, open(t, memBlob(z), x), content, 5)
	}
}

// prefix returns empty blocks of n bits, modulo 8, in that many bits of the
// last byte: what a reader that cannot start within a byte starts with.
func prefix(n int) []byte {
	var w bitWriter
	if n%2 == 1 { // 93 bits: a dynamic block
		w.write(0, 1).write(2, 2).write(0, 5).write(0, 5).write(15, 4)
		for i := range 19 { // codes for 18 and 1 alone
			w.write(map[int]uint64{2: 1, 17: 1}[i], 3)
		}
		w.write(1, 1).write(138-11, 7).write(1, 1).write(118-11, 7) // no literals
		w.write(0, 1).write(0, 1)                                   // end of block; distance
		w.write(0, 1)
	}
	for w.n%8 != n {
		w.write(0, 1).write(1, 2).write(0, 7)
	}
	return w.b
}

type bitWriter struct {
	b []byte
	n int
}

func (w *bitWriter) write(v uint64, n int) *bitWriter {
	for i := range n {
		if w.n%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[w.n/8] |= byte(v>>i&1) << (w.n % 8)
		w.n++
	}
	return w
}

// The reference reads on from a point for as long as it is asked to, with zlib.
// compress/flate does so here: windows with zeros in place of what nobody
// refers to must do for it.
func TestSparseWindowsDoForOthers(t *testing.T) {
	content := layerLike(t, 2<<20)
	z := piped(t, content, "gzip", "-6")
	_, x := build(t, z, gzidx.Options{Span: 64 << 10})
	all, windows := points(t, x)
	if len(all) < 10 {
		t.Fatalf("%d points", len(all))
	}
	odd := 0
	for i, p := range all {
		start := z[p.en:]
		if p.bits > 0 {
			odd++
			b := prefix(int(8 - p.bits))
			b[len(b)-1] |= z[p.en-1] &^ (1<<(8-p.bits) - 1)
			start = append(b, start...)
		}
		got := make([]byte, min(300_000, len(content)-int(p.de)))
		if _, err := io.ReadFull(flate.NewReaderDict(bytes.NewReader(start), windows[i]), got); err != nil {
			t.Fatalf("point %d: %v", i, err)
		}
		if !bytes.Equal(got, content[p.de:p.de+int64(len(got))]) {
			t.Fatalf("point %d: wrong bytes", i)
		}
	}
	if odd < 5 {
		t.Errorf("only %d points lie within bytes", odd)
	}
}

func TestHostileIndex(t *testing.T) {
	z := gzipped(t, sources(t, 1<<20), 6)
	_, good := build(t, z, gzidx.Options{Span: 64 << 10})
	all, windows := points(t, good)
	sumsAt, sums := binary.LittleEndian.Uint64(good[66:]), binary.LittleEndian.Uint64(good[74:])
	u64 := func(off int, v uint64) func([]byte) {
		return func(x []byte) { binary.LittleEndian.PutUint64(x[off:], v) }
	}
	u32 := func(off int, v uint32) func([]byte) {
		return func(x []byte) { binary.LittleEndian.PutUint32(x[off:], v) }
	}
	headers := map[string]func([]byte){
		"magic":               func(x []byte) { x[0] = 'D' },
		"window":              u32(17, 65536),
		"entry size":          u32(21, 30),
		"no points":           u64(25, 0),
		"points 1e6":          u64(25, 1e6),
		"points max":          u64(25, math.MaxUint64),
		"one point less":      u64(25, uint64(len(all)-1)),
		"one point more":      u64(25, uint64(len(all)+1)),
		"gzip size 0":         u64(33, 0),
		"gzip size max":       u64(33, math.MaxUint64),
		"file size":           u64(41, uint64(len(good)+1)),
		"content too long":    u64(49, 1<<40),
		"content negative":    u64(49, 1<<63),
		"content short":       u64(49, 1<<19),
		"index start 0":       u64(313, 0),
		"index start late":    u64(313, uint64(len(good)+1)),
		"index start wraps":   func(x []byte) { u64(313, math.MaxUint64-10)(x); u64(321, uint64(len(x))+11)(x) },
		"area max":            u64(321, math.MaxUint64),
		"sums early":          u64(66, 0),
		"sums late":           u64(66, 1<<40),
		"sums negative":       u64(66, 1<<63),
		"fewer sums":          u64(74, 4),
		"a sum less":          u64(74, sums-4),
		"a sum more":          func(x []byte) { u64(66, sumsAt-4)(x); u64(74, sums+4)(x) },
		"half a sum":          u64(74, sums-2),
		"sums of 16 EiB":      u64(74, math.MaxUint64-3),
		"sums wrap":           func(x []byte) { u64(66, 400)(x); u64(74, math.MaxInt64-3)(x) },
		"CRC of sums":         u32(82, 0),
		"sums elsewhere":      u64(66, 333),
		"windows not packed?": func(x []byte) { x[10] = 0 },
	}
	for name, edit := range headers {
		x := slices.Clone(good)
		edit(x)
		reseal(x)
		refuse(t, name, z, x, gzidx.ErrCorrupt)
	}
	for name, off := range map[string]int{"version": 8, "algorithm": 10, "version of sums": 65} {
		x := slices.Clone(good)
		x[off] = 2
		reseal(x)
		refuse(t, name, z, x, errors.ErrUnsupported)
	}
	for i := 0; i < 333; i += 1 + i/30 {
		x := slices.Clone(good)
		x[i] ^= 0x10
		refuse(t, "header without CRC", z, x, gzidx.ErrCorrupt)
	}
	for n := 0; n < len(good); n += 1 + n/50 {
		x := good[:n]
		refuse(t, "cut", z, x, gzidx.ErrCorrupt)
	}
	for name, edit := range map[string]func(p []refPoint){
		"first not at 0":    func(p []refPoint) { p[0].de = 1 },
		"same place":        func(p []refPoint) { p[2].en, p[2].bits = p[1].en, p[1].bits },
		"backwards":         func(p []refPoint) { p[1], p[2] = p[2], p[1] },
		"before 0":          func(p []refPoint) { p[1].de = -1 },
		"behind the end":    func(p []refPoint) { p[len(p)-1].de = 1 << 40 },
		"compressed at end": func(p []refPoint) { p[len(p)-1].en = int64(len(z)) },
		"in the header":     func(p []refPoint) { p[0].en = 3 },
		"compressed max":    func(p []refPoint) { p[len(p)-1].en = math.MaxInt64 },
		"eight bits":        func(p []refPoint) { p[1].bits = 8 },
	} {
		p := slices.Clone(all)
		edit(p)
		refuse(t, name, z, encode(good, true, p, windows), gzidx.ErrCorrupt)
	}
}

func refuse(t *testing.T, name string, z, x []byte, want error) {
	t.Helper()
	b, err := gzidx.Open(t.Context(), memBlob(z), bytes.NewReader(x), int64(len(x)))
	if !errors.Is(err, want) || b != nil {
		t.Errorf("%s: got %v, %v, want %v", name, b, err, want)
	}
}

// A window that is another's, or does not unpack, must not make wrong bytes.
func TestWrongWindows(t *testing.T) {
	content := sources(t, 1<<20)
	z := gzipped(t, content, 6)
	_, x := build(t, z, gzidx.Options{Span: 64 << 10})
	rnd := rand.New(rand.NewPCG(1, 2))
	windows := binary.LittleEndian.Uint64(x[66:]) - 333
	failed := 0
	for range 50 {
		bad := slices.Clone(x)
		bad[333+rnd.IntN(int(windows))]++
		b := open(t, memBlob(z), bad)
		p := make([]byte, len(content))
		n, err := b.ReadAt(t.Context(), p, 0)
		if !bytes.Equal(p[:n], content[:n]) || n < len(p) && !errors.Is(err, gzidx.ErrCorrupt) && !errors.Is(err, gzidx.ErrChanged) {
			t.Fatalf("read %d bytes, %v", n, err)
		}
		if err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no fault was met with")
	}
}

// Sums that are right as a whole, but not those of the spans there are, are told
// when the index is opened.
func TestSumsOfOtherSpans(t *testing.T) {
	z := gzipped(t, sources(t, 1<<20), 6)
	_, x := build(t, z, gzidx.Options{Span: 128 << 10})
	at, n := binary.LittleEndian.Uint64(x[66:]), binary.LittleEndian.Uint64(x[74:])
	for name, edit := range map[string]func() (at, n uint64){
		"one less": func() (uint64, uint64) { return at, n - 4 },
		"one more": func() (uint64, uint64) { return at - 4, n + 4 },
	} {
		bad := slices.Clone(x)
		at, n := edit()
		binary.LittleEndian.PutUint64(bad[66:], at)
		binary.LittleEndian.PutUint64(bad[74:], n)
		binary.LittleEndian.PutUint32(bad[82:], crc32.Checksum(bad[at:at+n], crc32.MakeTable(crc32.Castagnoli)))
		reseal(bad)
		refuse(t, name, z, bad, gzidx.ErrCorrupt)
	}
}

// A span of more than 64 MiB is refused before anything of it is read.
func TestSpanTooLong(t *testing.T) {
	z := gzipped(t, make([]byte, 1<<20), 1)
	_, x := build(t, z, gzidx.Options{})
	all, windows := points(t, x)
	binary.LittleEndian.PutUint64(x[33:], 1<<20)
	binary.LittleEndian.PutUint64(x[49:], gzidx.MaxSpan+1)
	refuse(t, "one point", z, encode(x, true, all[:1], windows[:1]), errors.ErrUnsupported)
}
