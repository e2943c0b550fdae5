// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"sync"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A meter adds up what the cached blobs of one device have read.
type meter struct {
	mu    sync.Mutex
	blobs []*cache.Blob
}

// opener returns next with every cached blob it opens counted by m.
func (m *meter) opener(next fetcher.Opener) fetcher.Opener {
	return meteredOpener{m, next}
}

type meteredOpener struct {
	m    *meter
	next fetcher.Opener
}

func (o meteredOpener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := o.next.Open(ctx, ref)
	if cached, ok := b.(*cache.Blob); ok && err == nil {
		o.m.mu.Lock()
		o.m.blobs = append(o.m.blobs, cached)
		o.m.mu.Unlock()
	}
	return b, err
}

// bytes returns what came over the network and what the cache answered.
func (m *meter) bytes() (fetched, cached int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.blobs {
		s := b.Stats()
		fetched += s.FetchedBytes
		cached += s.HitBytes
	}
	return fetched, cached
}
