// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/cache"
)

// TestLink reads here and there over networks, and looks at what a request
// asks for once they are known: what takes a 32nd of the time in which its
// first byte comes.
func TestLink(t *testing.T) {
	data := content(64 << 20)
	for _, tc := range []struct {
		name    string
		latency time.Duration
		rate    int64 // bytes per second
		want    int64
	}{
		{"near", time.Millisecond, 1 << 30, 256 << 10},
		{"25 Mbit/s, far", 90 * time.Millisecond, 25e6 / 8, 32 << 10}, // 9 KB, but an eighth of the usual at least
		{"200 Mbit/s", 50 * time.Millisecond, 200e6 / 8, 32 << 10},    // 39 KB
		{"1 Gbit/s", 20 * time.Millisecond, 1e9 / 8, 64 << 10},        // 78 KB
		{"5 Gbit/s", 10 * time.Millisecond, 5e9 / 8, 128 << 10},       // 195 KB
		{"10 Gbit/s, far", 50 * time.Millisecond, 10e9 / 8, 1 << 20},  // 1.9 MB, but four times the usual at most
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openCache(t, cache.Options{})
				src := newSource(data)
				src.piece = 16 << 10
				src.serve = network(tc.latency, tc.rate)
				b := openBlob(t, c, "x", src)
				p := make([]byte, 4<<10)
				for off := int64(0); off < src.Size(); off += 4 << 20 { // the first of a region each
					if _, err := b.ReadAt(t.Context(), p, off); err != nil {
						t.Fatal(err)
					}
					c.Quiesce()
				}
				log := src.asked()
				if last := log[len(log)-1]; last.end-last.off != tc.want {
					t.Errorf("the last request was for %s, want %d bytes", last, tc.want)
				}
			})
		})
	}
}

// network returns what makes a source be far away.
func network(latency time.Duration, rate int64) func(ctx context.Context, off, n int64) error {
	next := int64(-1) // where a request goes on
	return func(_ context.Context, off, n int64) error {
		if off != next {
			time.Sleep(latency)
		}
		next = off + n
		time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		return nil
	}
}
