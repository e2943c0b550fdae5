// SPDX-License-Identifier: Apache-2.0

package gzidx

import "slices"

// recentSpans keeps the spans that were decoded last, for reads in a row that
// take a piece of one each.
type recentSpans struct {
	limit, size int       // bytes
	kept        []*flight // the oldest first; few
}

// flight returns span i as a flight that has landed, or nil.
func (r *recentSpans) flight(i int) *flight {
	at := slices.IndexFunc(r.kept, func(f *flight) bool { return f.span == i })
	if at < 0 {
		return nil
	}
	f := r.kept[at]
	r.kept = append(slices.Delete(r.kept, at, at+1), f)
	return f
}

// keep keeps span i, unless it is too long.
func (r *recentSpans) keep(i int, data []byte) {
	if len(data) > r.limit {
		return
	}
	done := make(chan struct{})
	close(done)
	r.kept = append(r.kept, &flight{span: i, done: done, data: data})
	r.size += len(data)
	for r.size > r.limit {
		r.size -= len(r.kept[0].data)
		r.kept = slices.Delete(r.kept, 0, 1)
	}
}

// clear forgets all of it.
func (r *recentSpans) clear() { r.kept, r.size = nil, 0 }
