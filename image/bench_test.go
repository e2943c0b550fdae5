// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// BenchmarkOpen: how many times as long as for one layer does it take to open
// seventy, where a round trip takes 50 ms? And what does it cost where all is in
// the cache, compared with reading the ends of the layers?
func BenchmarkOpen(b *testing.B) {
	b.Run("70 layers far away", func(b *testing.B) {
		reg := fetchertest.NewRegistry(b, fetchertest.Options{RTT: 50 * time.Millisecond})
		one, all := stored(b, reg, 1, 600<<10), stored(b, reg, 70, 600<<10)
		var took, base time.Duration
		for b.Loop() {
			base += coldOpen(b, reg, one)
			took += coldOpen(b, reg, all)
		}
		b.ReportMetric(float64(took)/float64(base), "x-of-one-layer")
	})
	b.Run("70 layers cached", func(b *testing.B) {
		reg := fetchertest.NewRegistry(b, fetchertest.Options{})
		v := stored(b, reg, 70, 600<<10)
		blobs, shut := cached(b, reg, b.TempDir())
		defer shut()
		openOnce(b, v, blobs)
		b.ReportAllocs()
		var took, base time.Duration
		for b.Loop() {
			begun := time.Now()
			readEnds(b, v, blobs)
			base += time.Since(begun)
			begun = time.Now()
			openOnce(b, v, blobs)
			took += time.Since(begun)
		}
		b.ReportMetric(float64(took)/float64(base), "x-of-reading-ends")
	})
}

// coldOpen opens v on a node that has nothing of it.
func coldOpen(b *testing.B, reg *fetchertest.Registry, v *spec.Volume) time.Duration {
	b.Helper()
	blobs, shut := cached(b, reg, b.TempDir())
	defer shut()
	begun := time.Now()
	openOnce(b, v, blobs)
	return time.Since(begun)
}

func openOnce(b *testing.B, v *spec.Volume, blobs fetcher.Opener) {
	b.Helper()
	i, err := image.Open(b.Context(), v, blobs)
	must(b, err)
	must(b, i.Close())
}

// readEnds reads the last 64 KiB of each layer, one after the other.
func readEnds(b *testing.B, v *spec.Volume, blobs fetcher.Opener) {
	b.Helper()
	p := make([]byte, 64<<10)
	for _, l := range v.Lowers {
		blob, err := blobs.Open(b.Context(), fetcher.Ref{URL: v.BlobURL(l), Digest: l.Digest, Size: l.Size})
		must(b, err)
		_, err = blob.ReadAt(b.Context(), p, l.Size-int64(len(p)))
		must(b, err)
		must(b, blob.Close())
	}
}
