// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// spans are the units in which a source makes its bytes, in blocks. A block
// belongs to the span that its first byte is in. So each block is made once:
// the last of a span takes the beginning of the next one as well, which is a
// little more to do, where to leave it out would be another span to make.
type spans struct {
	geo *geometry
	of  fetcher.Spanner
}

// around returns the blocks [lo, hi) of the span that b belongs to.
func (s *spans) around(b block) (lo, hi block) {
	at := s.geo.start(b)
	start, end := s.of.Span(at)
	lo, hi = s.geo.span(min(max(start, 0), at)+s.geo.blockSize()-1, min(max(end, at+1), s.geo.size))
	return min(lo, b), max(hi, b+1)
}

// edge returns the end of the span of byte off, in blocks, as a byte offset.
func (s *spans) edge(off int64) int64 {
	_, hi := s.around(s.geo.blockAt(min(off, s.geo.size-1)))
	return s.geo.start(hi)
}

// window returns the blocks around blk that one request may ask for when a
// reader wants all up to end: whole spans where they are larger than what
// otherwise is asked for, and else what that is, cut at spans.
func (s *spans) window(blk, end block, form cut) (lo, hi block) {
	most := s.geo.maxExtent
	first, last := s.around(blk)
	if lo, hi = s.geo.window(blk, end, form); last-first >= hi-lo {
		lo, hi = first, last
		if end > last {
			_, hi = s.around(end - 1)
		}
	} else {
		if l, h := s.around(lo); l < lo {
			lo = min(h, first)
		}
		_, hi = s.around(hi - 1)
	}
	if hi-lo <= most {
		return lo, hi
	}
	if blk >= lo+most { // a huge span, of which a part has to do
		lo += (blk - lo) / most * most
	}
	if lo+most >= hi {
		return lo, hi
	}
	hi = lo + most
	if l, _ := s.around(hi); l > blk {
		hi = l
	}
	return lo, hi
}

// window returns the blocks around blk that one request of b may ask for.
func (s *store) window(b *Blob, blk, end block, form cut) (lo, hi block) {
	if b.spans != nil {
		return b.spans.window(blk, end, form)
	}
	return s.geo.window(blk, end, form)
}

// askSpans is ask for a source that makes spans: who reads of one after the
// other gets the next ones before asking for them.
func (b *Blob) askSpans(ctx context.Context, off, stop int64) (f *fetch, reach int64, err error) {
	form := cut{extent: int64(b.s.c.opts.ExtentSize)}
	first, last := b.s.geo.span(off, stop)
	first, last = b.spans.window(first, last, form)
	m := b.ahead.follow(off, b.s.geo.start(first), b.s.geo.start(last), int64(b.s.c.opts.MaxExtent), b.spans.edge)
	f, reach, err = b.first(ctx, want{off: off, end: stop, until: stop, cut: form})
	if err != nil || m.from >= min(m.ahead, b.s.geo.size) {
		return f, reach, err
	}
	next, _, _ := b.first(ctx, want{off: m.from, end: m.ahead, until: m.ahead, cut: form, low: true})
	if next != nil {
		next.release()
	}
	return f, reach, nil
}
