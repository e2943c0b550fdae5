// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/cache"
)

// TestLink reads over networks, first much and then a little, and looks at what
// a request asks for once they are known: what comes in 8 ms,
// or 4 ms on a thin link.
func TestLink(t *testing.T) {
	data := content(64 << 20)
	for _, tc := range []struct {
		name    string
		latency time.Duration
		rate    int64 // bytes per second
		want    int64
	}{
		{"near", time.Millisecond, 1 << 30, 256 << 10},
		{"25 Mbit/s", 90 * time.Millisecond, 25e6 / 8, 32 << 10},   // 13 KB, but an eighth of the usual at least
		{"200 Mbit/s", 50 * time.Millisecond, 200e6 / 8, 64 << 10}, // 100 KB
		{"1 Gbit/s", 20 * time.Millisecond, 1e9 / 8, 512 << 10},    // 1 MB, but the stream waited
		{"5 Gbit/s", 10 * time.Millisecond, 5e9 / 8, 1 << 20},      // 5 MB, but four times the usual at most
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openCache(t, cache.Options{})
				src := newSource(data)
				src.piece = 16 << 10
				src.serve = network(tc.latency, tc.rate)
				b := openBlob(t, c, "x", src)
				r, err := b.ReadRange(t.Context(), 0, 32<<20)
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(io.Discard, r)
				if _, rerr := b.ReadAt(t.Context(), make([]byte, 4<<10), 48<<20); errors.Join(err, rerr) != nil {
					t.Fatal(err, rerr)
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
