// SPDX-License-Identifier: Apache-2.0

package zfile_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// benchContent returns 8 MiB of words, whose frequency falls with their rank
// as in a language.
func benchContent() []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	rank := rand.NewZipf(rnd, 1.1, 3, 20_000)
	p := make([]byte, 0, 8<<20+16)
	for len(p) < 8<<20 {
		word := rank.Uint64() * 0x9E3779B97F4A7C15
		for n := 2 + word%9; n > 0; n-- {
			p = append(p, 'a'+byte(word>>(5*n)%26))
		}
		p = append(p, ' ')
	}
	return p[:8<<20]
}

// ratio runs op until b is done and baseline as often, and reports how many
// times as long op took at its best: what others do on the machine only adds.
func ratio(b *testing.B, size int, baseline, op func(i int)) {
	b.Helper()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var took, base stopwatch
	n := 0
	for b.Loop() {
		op(n)
		took.lap(size)
		n++
	}
	for i := range n {
		baseline(i)
		base.lap(size)
	}
	b.ReportMetric(float64(took.best)/float64(base.best), "x-of-baseline")
}

// A stopwatch keeps the shortest time that 256 KiB took.
type stopwatch struct {
	start time.Time
	done  int
	best  time.Duration
}

func (s *stopwatch) lap(size int) {
	if s.done += size; s.done < 256<<10 {
		return
	}
	now := time.Now()
	if d := now.Sub(s.start); !s.start.IsZero() && (s.best == 0 || d < s.best) {
		s.best = d
	}
	s.start, s.done = now, 0
}

// BenchmarkReadHit4K: what does a 4 KiB block cost when its compressed bytes
// are in memory, compared with decompression alone and with a copy of 4 KiB?
func BenchmarkReadHit4K(b *testing.B) {
	raw := benchContent()
	for _, a := range algorithms {
		r := open(b, memBlob(compress(b, raw, zfile.Options{Algorithm: a})))
		p := make([]byte, 4096)
		read := func(i int) {
			if _, err := r.ReadAt(b.Context(), p, int64(i*4096)&(8<<20-1)); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprint(a, "/copy"), func(b *testing.B) {
			ratio(b, len(p), func(i int) { copy(p, raw[i*4096&(8<<20-1):]) }, read)
		})
		bare := bareDecode(b, a, raw, p)
		b.Run(fmt.Sprint(a, "/decode"), func(b *testing.B) { ratio(b, len(p), bare, read) })
	}
}

// bareDecode returns the decompression of block i of raw into p by the
// library alone.
func bareDecode(b *testing.B, a zfile.Algorithm, raw, p []byte) func(i int) {
	b.Helper()
	blocks := make([][]byte, len(raw)/4096)
	e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false))
	if err != nil {
		b.Fatal(err)
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	for i := range blocks {
		blocks[i] = make([]byte, lz4.CompressBlockBound(4096))
		if a == zfile.Zstd {
			blocks[i] = e.EncodeAll(raw[i*4096:][:4096], nil)
			continue
		}
		n, err := new(lz4.CompressorCCompat).CompressBlock(raw[i*4096:][:4096], blocks[i])
		if err != nil {
			b.Fatal(err)
		}
		blocks[i] = blocks[i][:n]
	}
	return func(i int) {
		var err error
		if a == zfile.Zstd {
			_, err = d.DecodeAll(blocks[i%len(blocks)], p[:0])
		} else {
			_, err = lz4.UncompressBlock(blocks[i%len(blocks)], p)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadSeq: how much faster is a MiB read at once than in 4 KiB
// reads?
func BenchmarkReadSeq(b *testing.B) {
	raw := benchContent()
	for _, a := range algorithms {
		r := open(b, memBlob(compress(b, raw, zfile.Options{Algorithm: a})))
		p := make([]byte, 1<<20)
		read := func(i, piece int) {
			for off := 0; off < len(p); off += piece {
				if _, err := r.ReadAt(b.Context(), p[off:off+piece], int64(i<<20+off)&(8<<20-1)); err != nil {
					b.Fatal(err)
				}
			}
		}
		for _, piece := range []int{64 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprint(a, "/", piece>>10, "K"), func(b *testing.B) {
				ratio(b, len(p), func(i int) { read(i, 4096) }, func(i int) { read(i, piece) })
			})
		}
	}
}

// BenchmarkWriter: how much do two workers gain over one?
func BenchmarkWriter(b *testing.B) {
	raw := benchContent()
	for _, a := range algorithms {
		write := func(workers int) {
			w, err := zfile.NewWriter(io.Discard, zfile.Options{Algorithm: a, Workers: workers})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := w.Write(raw); err != nil {
				b.Fatal(err)
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprint(a, "/2 workers"), func(b *testing.B) {
			ratio(b, len(raw), func(int) { write(1) }, func(int) { write(2) })
		})
	}
}

// BenchmarkLevel: how many bytes does the best level save, and at what cost? The
// content is this test's own program, in blocks of 16 KiB.
func BenchmarkLevel(b *testing.B) {
	raw := programText(b)
	for _, a := range algorithms {
		write := func(l zfile.Level) int {
			return len(compress(b, raw, zfile.Options{Algorithm: a, BlockSize: 16 << 10, Level: l, Workers: 1}))
		}
		b.Run(a.String(), func(b *testing.B) {
			ratio(b, len(raw), func(int) { write(zfile.Normal) }, func(int) { write(zfile.Best) })
			b.ReportMetric(float64(write(zfile.Best))/float64(write(zfile.Normal)), "x-bytes")
		})
	}
}

// programText returns 2 MB of this test's own program.
func programText(tb testing.TB) []byte {
	tb.Helper()
	name, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		tb.Fatal(err)
	}
	return raw[:min(len(raw), 2_000_001)]
}
