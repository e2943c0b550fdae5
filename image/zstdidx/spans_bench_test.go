// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// BenchmarkSpans shows what spans cost for what encoders make: the size of the
// index, as a part of the zstd file, and how much is decoded to read one byte on
// average. LAYER names another content than Go's sources.
func BenchmarkSpans(b *testing.B) {
	content := benchContent(b)
	if name := os.Getenv("LAYER"); name != "" {
		p, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		content = p
	}
	var all []maker
	for level := zstd.SpeedFastest; level <= zstd.SpeedBestCompression; level++ {
		all = append(all, maker{"go-" + level.String(), goStream(zstd.WithEncoderLevel(level))})
	}
	for _, level := range []string{"-1", "-3", "-9", "-19"} {
		all = append(all, maker{"zstd" + level, program(level)})
	}
	all = append(all, maker{"chunked", chunked})
	for _, m := range all {
		b.Run(m.name, func(b *testing.B) {
			if strings.HasPrefix(m.name, "zstd") && !hasProgram() {
				b.Skip("no program zstd")
			}
			z := m.make(b, content)
			for _, most := range []int64{2, 4, 8, 16, 32} {
				b.Run(fmt.Sprintf("%dMiB", most), func(b *testing.B) { benchSpans(b, z, most<<20) })
			}
		})
	}
}

func benchSpans(b *testing.B, z []byte, most int64) {
	var index []byte
	for b.Loop() {
		_, index = indexed(b, z, zstdidx.Options{MaxSpan: most})
	}
	src := open(b, memBlob(z), index)
	var squares, spans float64
	for off := int64(0); off < src.Size(); spans++ {
		start, end := src.Span(off)
		squares += float64(end-start) * float64(end-start)
		off = end
	}
	b.ReportMetric(100*float64(len(index))/float64(len(z)), "%index")
	b.ReportMetric(squares/float64(src.Size())/(1<<20), "MiB/byte")
	b.ReportMetric(spans, "spans")
}
