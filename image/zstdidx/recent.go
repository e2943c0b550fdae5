// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"slices"
	"time"
)

const (
	// maxKept bounds the spans that a Blob keeps, bytes of content; the last is
	// kept however large it is. What is above a Blob caches spans, too: these
	// are for reads that meet before it has them.
	maxKept = 16 << 20

	// keepFor is how long a Blob keeps spans that nobody reads.
	keepFor = 10 * time.Second

	// maxDecodes bounds how many spans of a Blob are decoded at a time, each of up
	// to 64 MiB, and as a rule of 16: most of the time one waits for its bytes.
	maxDecodes = 8

	// maxIdleDecoders bounds what decoders a Blob keeps, of 0.6 MB each.
	maxIdleDecoders = 2
)

// recent holds the spans that were used last.
type recent struct {
	spans []keptSpan // the last is the one used last
	size  int        // bytes
}

type keptSpan struct {
	i int
	p []byte
}

func (r *recent) index(i int) int {
	return slices.IndexFunc(r.spans, func(s keptSpan) bool { return s.i == i })
}

// find returns span i, and makes it the last to go.
func (r *recent) find(i int) ([]byte, bool) {
	at := r.index(i)
	if at < 0 {
		return nil, false
	}
	s := r.spans[at]
	r.spans = append(slices.Delete(r.spans, at, at+1), s)
	return s.p, true
}

// keep adds span i, which is not there.
func (r *recent) keep(i int, p []byte) {
	r.spans = append(r.spans, keptSpan{i, p})
	r.size += len(p)
	for r.size > maxKept && len(r.spans) > 1 {
		r.drop(r.spans[0].i)
	}
}

// drop forgets span i.
func (r *recent) drop(i int) {
	if at := r.index(i); at >= 0 {
		r.size -= len(r.spans[at].p)
		r.spans = slices.Delete(r.spans, at, at+1)
	}
}
