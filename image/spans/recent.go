// SPDX-License-Identifier: Apache-2.0

package spans

import "slices"

// maxKept is how many spans are kept at most: each read looks through them.
const maxKept = 64

// recentSpans keeps the spans that were used last, for reads in a row that take
// a piece of one each: the last one, however long it is, and others up to the
// limit.
type recentSpans struct {
	limit, size int       // bytes
	kept        []*flight // the one used last at the end; few
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

// keep keeps span i, which it has not got.
func (r *recentSpans) keep(i int, data []byte) {
	if r.limit <= 0 {
		return
	}
	r.kept = append(r.kept, &flight{span: i, progress: progress{data: data, over: true}})
	r.size += len(data)
	for r.size > r.limit && len(r.kept) > 1 || len(r.kept) > maxKept {
		r.drop(r.kept[0].span, r.kept[0].span)
	}
}

// drop forgets the spans from first to last.
func (r *recentSpans) drop(first, last int) {
	r.kept = slices.DeleteFunc(r.kept, func(f *flight) bool {
		if f.span < first || f.span > last {
			return false
		}
		r.size -= len(f.data)
		return true
	})
}
