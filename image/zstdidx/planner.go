// SPDX-License-Identifier: Apache-2.0

package zstdidx

import "sort"

// A point is a place in a stream where a span may begin.
type point struct {
	at     int64 // in the content
	end    int64 // of what comes before in the zstd file, without what has no content
	pos    int64 // in the zstd file
	inside bool  // a frame
	state  state
	need   [tableCount]bool // tables of the state that were used behind it
	made   [tableCount]bool // tables that were made behind it
}

// A planner chooses where spans begin. Wherever one begins inside a frame, the
// index must hold what the span takes from before. That is little at some
// places, such as where an encoder of several threads began a job, and the less
// the longer the spans are; but a span is what one byte costs to read. The
// planner weighs one against the other, for all points within a distance of
// each other.
type planner struct {
	opts   Options
	out    *output
	points []point // where spans may begin; one does at the first
	spans  []span
	sums   []byte
	states []byte
	marks  marks
	packer packer
}

// last returns the last point, nil if there is none.
func (p *planner) last() *point {
	if len(p.points) == 0 {
		return nil
	}
	return &p.points[len(p.points)-1]
}

// pop takes the last point back, before which there is another or nothing.
func (p *planner) pop() { p.points = p.points[:len(p.points)-1] }

// step returns the distance of points in a frame with that window, bytes. With
// large windows it is longer, for there is more to weigh.
func (p *planner) step(window int) int64 {
	return min(max(p.opts.Span, int64(window)/16), p.opts.MaxSpan/2)
}

// add adds a point and decides on those that are far enough behind it.
func (p *planner) add(pt point) {
	p.points = append(p.points, pt)
	p.out.base = len(p.out.buf)
	ahead := p.opts.MaxSpan / 2
	if pt.at-p.points[0].at < p.opts.MaxSpan+ahead {
		return
	}
	cuts := p.choose()
	done := 0
	for _, c := range cuts {
		if done > 0 && p.points[c].at > pt.at-ahead {
			break
		}
		p.cut(done, c)
		done = c
	}
	p.points = append(p.points[:0], p.points[done:]...)
	refs := p.out.refs
	p.out.refs = append(refs[:0], refs[p.behind(0):]...)
}

// finish decides on all points of a content that ends at byte at, and at byte
// end in the zstd file. The next point is like the first of a file.
func (p *planner) finish(at, end int64) {
	if last := p.last(); last == nil || last.at == at {
		p.points = p.points[:max(len(p.points)-1, 0)]
	}
	if len(p.points) > 0 {
		p.points = append(p.points, point{at: at, end: end})
		done := 0
		for _, c := range p.choose() {
			p.cut(done, c)
			done = c
		}
	}
	p.points, p.out.refs = p.points[:0], p.out.refs[:0]
}

// note takes account of the tables that a block repeated and made.
func (p *planner) note(t *tables) {
	for i := range p.points {
		pt := &p.points[i]
		for k := range tableCount {
			pt.need[k] = pt.need[k] || t.repeated[k] && !pt.made[k]
			pt.made[k] = pt.made[k] || t.made[k]
		}
	}
}

// keep returns from where on bytes decoded are of use, in the output's buffer.
func (p *planner) keep() int {
	if len(p.points) == 0 {
		return len(p.out.buf)
	}
	first := &p.points[0]
	at := int(first.at - p.out.start)
	if first.inside {
		at -= first.state.frame.window
	}
	return at
}

// behind returns the first ref behind point i.
func (p *planner) behind(i int) int {
	refs := p.out.refs
	return sort.Search(len(refs), func(k int) bool { return refs[k].at >= p.points[i].at })
}

// work is what a byte of the zstd file more in a span is worth, per byte that it
// has, in bytes of the index: 1 % of a zstd file for its spans having a MB more
// on average.
const work = 1e-8

// choose returns the points where spans are to end, of which the last is one.
// It is the way from the first to the last that costs least.
func (p *planner) choose() []int {
	n := len(p.points)
	cost, from := make([]float64, n), make([]int, n)
	for i := range n - 1 {
		p.extend(i, cost, from)
	}
	var cuts []int
	for i := n - 1; i > 0; i = from[i] {
		cuts = append(cuts, i)
	}
	for l, r := 0, len(cuts)-1; l < r; l, r = l+1, r-1 {
		cuts[l], cuts[r] = cuts[r], cuts[l]
	}
	return cuts
}

// extend considers the spans that begin at point i: what a way costs that ends
// with one of them.
func (p *planner) extend(i int, cost []float64, from []int) {
	a := &p.points[i]
	p.marks.reset()
	k := p.behind(i)
	for j := i + 1; j < len(p.points); j++ {
		b := &p.points[j]
		size := b.at - a.at
		if size > p.opts.MaxSpan && j > i+1 {
			break
		}
		k = p.mark(k, a.at, b.at)
		stored := b.end - a.pos
		c := cost[i] + recordSize + float64(stored)*float64(stored)*work
		if a.inside {
			// History, packed, shrinks to a part twice that of the file: what
			// is taken from afar repeats less.
			c += stateSize + float64(p.marks.count)*min(2*float64(stored)/float64(size), 1)
		}
		if cost[j] == 0 || c < cost[j] {
			cost[j], from[j] = c, i
		}
	}
}

// mark marks what refs from the k-th on, up to byte end of the content, take
// from before byte start. It returns the first ref behind.
func (p *planner) mark(k int, start, end int64) int {
	for ; k < len(p.out.refs) && p.out.refs[k].at < end; k++ {
		r := &p.out.refs[k]
		if distance := start - r.at + int64(r.offset); distance > 0 {
			p.marks.add(int(distance), int(min(int64(r.n), distance)))
		}
	}
	return k
}

// cut adds the span from point i to point j.
func (p *planner) cut(i, j int) {
	a, b := &p.points[i], &p.points[j]
	from := int(a.at - p.out.start)
	p.sums = appendSums(p.sums, p.out.buf[from:int(b.at-p.out.start)])
	s := span{pos: a.pos, stored: b.end - a.pos, size: b.at - a.at}
	if a.inside {
		for k := range a.need {
			if !a.need[k] {
				a.state.tables[k] = recipe{}
			}
		}
		p.marks.reset()
		p.mark(p.behind(i), a.at, b.at)
		before := len(p.states)
		p.states = a.state.append(p.states, p.packer.pack(&p.marks, p.out.buf[:from]))
		s.state = len(p.states) - before
	}
	p.spans = append(p.spans, s)
}
