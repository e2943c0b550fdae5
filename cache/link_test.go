// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/cache"
)

// TestLink fetches much over networks, and then looks at what a request for a
// little asks for: what comes in 8 ms, or in 4 ms on a thin link.
func TestLink(t *testing.T) {
	data := content(64 << 20)
	for _, tc := range []struct {
		name    string
		latency time.Duration
		rate    int64 // bytes per second
		want    int64
	}{
		{"near", time.Millisecond, 1 << 30, 256 << 10},
		{"25 Mbit/s", 90 * time.Millisecond, 25e6 / 8, 32 << 10},    // 13 KB, but an eighth of the usual at least
		{"200 Mbit/s", 50 * time.Millisecond, 200e6 / 8, 64 << 10},  // 100 KB
		{"600 Mbit/s", 20 * time.Millisecond, 600e6 / 8, 512 << 10}, // 600 KB
		{"5 Gbit/s", 20 * time.Millisecond, 5e9 / 8, 1 << 20},       // 5 MB, but four times the usual at most
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openCache(t, cache.Options{})
				src := newSource(data)
				src.piece = 16 << 10
				src.serve = network(tc.latency, tc.rate)
				b := openBlob(t, c, "x", src)
				if err := b.Prefetch(t.Context(), 0, 32<<20); err != nil {
					t.Fatal(err)
				}
				if _, err := b.ReadAt(t.Context(), make([]byte, 4<<10), 48<<20); err != nil {
					t.Fatal(err)
				}
				c.Quiesce()
				log := src.asked()
				if last := log[len(log)-1]; last.end-last.off != tc.want {
					t.Errorf("the last request was for %s, want %d bytes", last, tc.want)
				}
			})
		})
	}
}

// network returns what makes a source be far away, whose requests begin at
// multiples of 4 MiB. A channel, unlike a mutex, lets the clock go on.
func network(latency time.Duration, rate int64) func(ctx context.Context, off, n int64) error {
	wire := make(chan struct{}, 1)
	return func(_ context.Context, off, n int64) error {
		if off%(4<<20) == 0 {
			time.Sleep(latency)
		}
		wire <- struct{}{}
		time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		<-wire
		return nil
	}
}

// TestDense: a region of which half is wanted comes as a whole, unless the link
// is thin.
func TestDense(t *testing.T) {
	data := content(64 << 20)
	for _, tc := range []struct {
		name  string
		rate  int64 // bytes per second
		whole bool
	}{
		{"1 Gbit/s", 1e9 / 8, true},
		{"200 Mbit/s", 200e6 / 8, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openCache(t, cache.Options{})
				src := newSource(data)
				src.piece = 16 << 10
				far := network(50*time.Millisecond, tc.rate)
				src.serve = func(ctx context.Context, off, n int64) error {
					if off >= 48<<20 && off%(256<<10) == 0 && off%(4<<20) != 0 {
						time.Sleep(50 * time.Millisecond)
					}
					return far(ctx, off, n)
				}
				b := openBlob(t, c, "x", src)
				if err := b.Prefetch(t.Context(), 0, 32<<20); err != nil {
					t.Fatal(err)
				}
				src.asked()
				for i := range int64(8) { // from the back, so that it is no stream
					if _, err := b.ReadAt(t.Context(), make([]byte, 4<<10), 52<<20-(i+1)<<19); err != nil {
						t.Fatal(err)
					}
				}
				c.Quiesce()
				var sum int64
				for _, r := range src.asked() {
					sum += r.end - r.off
				}
				if got := sum == 4<<20; got != tc.whole {
					t.Errorf("%d bytes of the region were fetched", sum)
				}
			})
		})
	}
}
