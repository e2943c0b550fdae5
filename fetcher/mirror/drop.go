// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"slices"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// given is who gave which bytes lately: enough to tell of what is read on
// demand, whose checksums are looked at right away.
type given struct {
	recent [64]gift
	n      int // gifts so far; the latest is recent[(n-1)%64]
}

// gift is bytes [off, end) from a place.
type gift struct {
	at       *place
	off, end int64
}

// note notes that n bytes at off come from a place.
func (b *Blob) note(at *place, off, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.given.recent[b.given.n%len(b.given.recent)] = gift{at, off, off + n}
	b.given.n++
}

// givers returns the places that gave any of bytes [off, end), if that is
// known. b.mu is held.
func (b *Blob) givers(off, end int64) (givers []*place) {
	for _, g := range b.given.recent {
		if g.at != nil && g.off < end && off < g.end {
			givers = append(givers, g.at)
		}
	}
	return givers
}

var _ fetcher.Dropper = (*Blob)(nil)

// Drop says that bytes read were wrong. Whoever gave them is not asked for
// this blob again. The last place stays: there may be nothing wrong with it,
// and nothing is beyond it.
func (b *Blob) Drop(_ context.Context, off, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	others := b.places[:len(b.places)-1]
	liars := b.givers(off, off+n)
	if liars == nil {
		// It is long ago: likely the best place without a penalty.
		now := time.Now()
		if i := slices.IndexFunc(others, func(p *place) bool { return p.free(now) }); i >= 0 {
			liars = others[i : i+1]
		}
	}
	last := b.places[len(others)]
	honest := slices.DeleteFunc(slices.Clone(others), func(p *place) bool { return slices.Contains(liars, p) })
	b.places = append(honest, last) // a new list: reads may be using the old one
	return nil
}
