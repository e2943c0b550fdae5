// SPDX-License-Identifier: Apache-2.0

package mirror_test

import (
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
)

// BenchmarkReadRange asks what a race costs when nobody is late: a request
// that somebody waits for, and one that is not raced.
func BenchmarkReadRange(b *testing.B) {
	for name, class := range map[string]limit.Class{"raced": limit.Demand, "alone": limit.Background} {
		b.Run(name, func(b *testing.B) {
			all := newServers(1)
			all[0].set(answer{})
			blob, err := mirror.New(all, all, mirror.Options{}).Open(b.Context(), fetcher.Ref{URL: all[0].url, Size: 10})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = blob.Close() }()
			ctx := limit.With(b.Context(), class)
			b.ReportAllocs()
			for b.Loop() {
				rc, err := fetcher.ReadRange(ctx, blob, 0, 10)
				if err != nil {
					b.Fatal(err)
				}
				_ = rc.Close()
			}
		})
	}
}
