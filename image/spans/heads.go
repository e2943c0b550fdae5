// SPDX-License-Identifier: Apache-2.0

package spans

import "slices"

// maxHeads is how many bytes of the source are kept for spans that were decoded
// in part.
const maxHeads = 8 << 20

// heads are the beginnings of what is stored of spans that were decoded in part:
// who wants more of one need not fetch them again.
type heads struct {
	size int    // bytes
	all  []head // the oldest first; few
}

type head struct {
	span int
	data []byte
}

// keepHead keeps the beginning of what is stored of span i, in place of what was
// kept; nil is none.
func (b *Blob) keepHead(i int, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heads.drop(i, i)
	if len(data) == 0 || b.closed {
		return
	}
	h := &b.heads
	h.all = append(h.all, head{i, data})
	for h.size += len(data); h.size > maxHeads; {
		h.drop(h.all[0].span, h.all[0].span)
	}
	b.linger()
}

// head returns what is kept of span i.
func (b *Blob) head(i int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if at := slices.IndexFunc(b.heads.all, func(h head) bool { return h.span == i }); at >= 0 {
		return b.heads.all[at].data
	}
	return nil
}

// drop forgets those of the spans from first to last.
func (h *heads) drop(first, last int) {
	h.all = slices.DeleteFunc(h.all, func(o head) bool {
		if o.span < first || o.span > last {
			return false
		}
		h.size -= len(o.data)
		return true
	})
}
