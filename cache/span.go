// SPDX-License-Identifier: Apache-2.0

package cache

import "context"

// around returns the blocks [lo, hi) of the span that b is in.
func (g *geometry) around(b block) (lo, hi block) {
	i := g.spanOf(b)
	return g.spans[i].first, g.spans[i+1].first
}

// wholeSpans is what window returns of a blob that is made in spans, where it
// would be [lo, hi) otherwise: the spans wanted where they are larger than that,
// or that, cut at spans.
func (g *geometry) wholeSpans(b, end, lo, hi block) (first, last block) {
	first, last = g.around(b)
	if last-first < hi-lo {
		if l, h := g.around(lo); l < lo {
			lo = min(h, first)
		}
		first, end = lo, max(end, hi)
	}
	if end > last {
		_, last = g.around(min(end, g.count()) - 1)
	}
	if last-first <= g.maxExtent {
		return first, last
	}
	if b >= first+g.maxExtent { // a huge span, of which a part has to do
		first += (b - first) / g.maxExtent * g.maxExtent
	}
	most := first + g.maxExtent
	if last <= most {
		return first, last
	}
	if l, _ := g.around(most); l > b {
		return first, l
	}
	return first, most
}

// leastPart is how many bytes of a span are asked for at least: no fewer are
// checked at a time.
const leastPart = 64 << 10

// enough returns where a request for blocks [first, last) may end, of which those
// up to end are wanted. What lies behind these in their span would cost more, and
// costs hardly more later: so the first request takes no more of a span than is
// wanted, and the next, by a reader who came back, the rest. Who knows what will
// be wanted, and has no extents cut, gets that each time.
func (g *geometry) enough(first, end, last block, form cut) block {
	if !g.parts || last == first {
		return last
	}
	start, _ := g.around(last - 1)
	if end <= start || form.whole || first > start && form.extent > 0 {
		return last
	}
	unit := max(g.blocks(form.extent), g.blocks(leastPart), 1)
	if part := start + (end-start+unit-1)/unit*unit; last-part >= unit {
		return part
	}
	return last
}

// edge returns the end of the span that byte off is in.
func (g *geometry) edge(off int64) int64 {
	_, hi := g.around(g.blockAt(min(off, g.size-1)))
	return g.start(hi)
}

// askSpans is ask for a source that makes spans: who reads one after the other
// gets the next ones before asking for them. Spans are large as they are, so that
// extents may be smaller than usual, but are never larger.
func (b *Blob) askSpans(ctx context.Context, off, stop, extent int64) (f *fetch, reach int64, err error) {
	geo, form := &b.s.geo, cut{extent: min(extent, int64(b.s.c.opts.ExtentSize))}
	first, last := geo.span(off, stop)
	first, last = geo.window(first, last, form)
	m := b.ahead.follow(off, geo.start(first), geo.start(last), int64(b.s.c.opts.MaxExtent), geo.edge)
	form.whole = m.whole
	f, reach, err = b.first(ctx, want{off: off, end: stop, until: stop, cut: form})
	if err != nil || m.from >= min(m.ahead, geo.size) {
		return f, reach, err
	}
	next, _, _ := b.first(ctx, want{off: m.from, end: m.ahead, until: m.ahead, cut: form, low: true})
	if next != nil {
		next.release()
	}
	return f, reach, nil
}
