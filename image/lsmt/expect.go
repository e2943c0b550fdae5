// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

const (
	// parallelExpects is how many parts of one range are fetched side by side.
	parallelExpects = 8

	// expectGap is what is fetched in vain, in bytes, to save a request.
	expectGap = 32 << 10
)

// Expect has the data of bytes [off, off+n) of the volume fetched for a reader
// to come, and returns when reads find it near. What is near anyway costs
// nothing.
func (s *Stack) Expect(ctx context.Context, off, n int64) error {
	off = max(off, 0)
	n = min(n, s.size-off)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelExpects)
	ask := func(p piece) {
		if p.data {
			g.Go(func() error { return expect(ctx, s.sources[p.tag], p.at, p.n) })
		}
	}
	var last [MaxLayers + 1]piece // by tag
	for i := s.index.find(uint64(off) / SectorSize); n > 0 && ctx.Err() == nil; {
		r, next := s.index.piece(i, off, n)
		if r.data && !last[r.tag].reach(r) {
			ask(last[r.tag])
			last[r.tag] = r
		}
		off, n, i = off+r.n, n-r.n, next
	}
	for _, p := range last {
		ask(p)
	}
	return g.Wait()
}

// reach extends p to the end of r if that lies closely behind it.
func (p *piece) reach(r piece) bool {
	gap := r.at - p.at - p.n
	if !p.data || gap < 0 || gap > expectGap {
		return false
	}
	p.n += gap + r.n
	return true
}

// Far reports whether any layer's data may have to be fetched.
func (s *Stack) Far() bool {
	for _, b := range s.sources {
		if !errors.Is(fetcher.Expect(context.Background(), b, 0, 0), errors.ErrUnsupported) {
			return true
		}
	}
	return false
}

func expect(ctx context.Context, b fetcher.Blob, off, n int64) error {
	err := fetcher.Expect(ctx, b, off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}
