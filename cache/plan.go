// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"io/fs"
	"math/bits"
	"slices"
	"sort"
)

// maxStarted bounds the requests that one plan starts, so that a scattered
// read does not ask for everything at once.
const maxStarted = 8

// A want is what a reader, or someone ahead of it, wants to have on its way.
type want struct {
	off, end int64 // bytes
	until    int64 // requests that begin here or behind wait for another want
	cut      cut
	low      bool // a prefetch
}

// A cut is the form of requests, in bytes, powers of two: their ends are
// aligned to extents, and they fill the unit that they begin in. Zero stands
// for one block, or one extent.
type cut struct {
	extent, unit int64
	whole        bool // spans, of which a part is enough otherwise
}

// plan sees to it that the blocks of w that are not on disk are on their way,
// asking the source of b for those that nobody has asked for. It returns their
// fetches in order, of which the first, if any, is to be released. The first
// brings the bytes up to reach, or fails.
func (s *store) plan(ctx context.Context, b *Blob, w want) (fetches []*fetch, reach int64, err error) {
	lo, hi := s.geo.span(w.off, min(w.end, s.geo.size))
	_, until := s.geo.span(w.off, min(w.until, s.geo.size))
	first, _ := s.geo.window(lo, hi, w.cut)
	s.load(first, min(until+s.geo.maxExtent, s.geo.count())) // fetches may begin and end there
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.closed.Load() {
		return nil, 0, fs.ErrClosed
	}
	for blk, started := lo, 0; blk < min(hi, until) && started < maxStarted; {
		f := s.inflightAt(blk)
		switch {
		case f != nil:
			if !w.low {
				s.c.budget.promote(f.ticket)
			}
		case s.onDisk(blk):
			blk++
			continue
		default:
			f = s.start(ctx, b, blk, hi, w.cut, w.low)
			started++
		}
		if len(fetches) == 0 {
			f.refs.Add(1)
			reach = s.geo.start(f.end)
		}
		fetches = append(fetches, f)
		blk = f.end
	}
	return fetches, reach, nil
}

// start begins a fetch of the missing blocks around blk. s.mu is held.
func (s *store) start(ctx context.Context, b *Blob, blk, hi block, form cut, low bool) *fetch {
	first, end := s.missing(blk, hi, form)
	f := &fetch{
		s: s, b: b, first: first, end: end,
		off:  s.geo.start(first),
		n:    s.geo.start(end) - s.geo.start(first),
		done: make(chan struct{}),
	}
	f.ticket = s.c.budget.ask(roundUp(f.n), low)
	f.refs.Store(1)
	s.refs.Add(1)
	s.inflight = slices.Insert(s.inflight, s.search(first), f)
	b.fetches.Add(1)
	go f.run(ctx)
	return f
}

// missing returns the blocks around blk that are neither on disk nor on their
// way, within the window that a reader who wants all up to hi may ask for.
func (s *store) missing(blk, hi block, form cut) (first, end block) {
	lo, last := s.geo.window(blk, hi, form)
	absent := func(b block) bool { return !s.onDisk(b) && s.inflightAt(b) == nil }
	for first = blk; first > lo && absent(first-1); first-- {
	}
	last = s.geo.enough(first, hi, last, form)
	for end = blk + 1; end < last && absent(end); end++ {
	}
	return first, end
}

// search returns the index of the first fetch in flight that ends after b.
func (s *store) search(b block) int {
	return sort.Search(len(s.inflight), func(i int) bool { return s.inflight[i].end > b })
}

// inflightAt returns the fetch that brings block b, if any. s.mu is held.
func (s *store) inflightAt(b block) *fetch {
	if i := s.search(b); i < len(s.inflight) && s.inflight[i].first <= b {
		return s.inflight[i]
	}
	return nil
}

// coming reports whether byte off is on its way.
func (s *store) coming(off int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inflightAt(s.geo.blockAt(off)) != nil
}

// shorten ends f's range in the table at end. An empty range leaves it.
func (s *store) shorten(f *fetch, end block) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.end = max(end, f.first)
	if f.end == f.first {
		s.inflight = slices.DeleteFunc(s.inflight, func(o *fetch) bool { return o == f })
	}
}

// drop forgets the blocks of bytes [off, end), on disk and on their way. Those
// who wait for them now still get them.
func (s *store) drop(off, end int64) {
	lo, hi := s.geo.span(off, min(end, s.geo.size))
	s.load(lo, hi)
	s.mu.Lock()
	s.inflight = slices.DeleteFunc(s.inflight, func(f *fetch) bool {
		hit := f.first < hi && lo < f.end
		f.dropped = f.dropped || hit
		return hit
	})
	s.forget(lo, hi)
	s.mu.Unlock()

	// Only after a restart would anyone look at the tags again, and they
	// match: the bytes are as they came. A write that crosses this one is
	// either of dropped blocks, or lost to the next restart.
	if f := s.files.Load(); f != nil {
		eachChunk(lo, hi, func(i int, m uint64) {
			if s.chunks.peek(i) != nil {
				s.unrecord(f, i, m)
			}
		})
	}
}

// unrecord says in the record that the blocks of chunk i in m are not on disk.
func (s *store) unrecord(f *files, i int, m uint64) {
	lo := block(i)*chunkBlocks + block(bits.TrailingZeros64(m))
	if err := f.clearTags(lo, lo+block(bits.OnesCount64(m))); err != nil {
		s.c.disk.failed(&s.c.disk.writeErrors, err)
	}
}
