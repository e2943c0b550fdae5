// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

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

var _ fetcher.Keeper = meteredOpener{}

func (o meteredOpener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := o.next.Open(ctx, ref)
	o.m.add(b)
	return b, err
}

func (o meteredOpener) OpenMade(ctx context.Context, ref fetcher.Ref, key digest.Digest, mk fetcher.Maker) (fetcher.Blob, error) {
	b, err := fetcher.OpenMade(ctx, o.next, ref, key, mk)
	o.m.add(b)
	return b, err
}

func (m *meter) add(b fetcher.Blob) {
	cached, ok := b.(*cache.Blob)
	if !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs = append(m.blobs, cached)
}

// near reports whether nearly all of the blobs is in the cache. Those that are
// closed have been downloaded since.
func (m *meter) near() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	var held, size int64
	for _, b := range m.blobs {
		if !b.Closed() {
			held += b.Held()
			size += b.Size()
		}
	}
	return held >= size-size/16
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
