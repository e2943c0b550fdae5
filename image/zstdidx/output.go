// SPDX-License-Identifier: Apache-2.0

package zstdidx

// An output is where decoded bytes go, and where matches take them from.
type output struct {
	buf   []byte // what is decoded; at least margin bytes of capacity stay free
	start int64  // where in the content buf begins
	base  int    // where in buf the span begins: what lies before is far
	frame int    // where in buf the frame begins; negative if it is not there any more

	refs []ref // what was taken from before base, where buf has that
	past *past // what lies before base, where buf has it not
}

// A ref is a match that takes bytes from afar.
type ref struct {
	at     int64 // where it goes, in the content
	offset uint32
	n      uint32 // bytes
}

// room returns how many bytes may be added.
func (o *output) room() int { return cap(o.buf) - len(o.buf) - margin }

// append adds the bytes p.
func (o *output) append(p []byte) error {
	if len(p) > o.room() {
		return malformed("%d bytes more, room for %d", len(p), o.room())
	}
	o.buf = append(o.buf, p...)
	return nil
}

// extend adds n bytes for the caller to fill.
func (o *output) extend(n int) ([]byte, error) {
	if n > o.room() {
		return nil, malformed("%d bytes more, room for %d", n, o.room())
	}
	at := len(o.buf)
	o.buf = o.buf[:at+n]
	return o.buf[at:], nil
}

// far is for a match to byte p that begins before the span. Where buf has what it
// takes, far notes it, for the caller to copy as any other; otherwise it copies
// the match from what was noted once, and reports true.
func (o *output) far(p, offset, length int) (copied bool, err error) {
	from := p - offset
	switch {
	case from < o.frame || o.frame > o.base:
		return false, malformed("match of offset %d begins before its frame", offset)
	case o.past != nil:
		return true, o.recall(p, offset, length)
	case from < 0:
		return false, malformed("match of offset %d begins before what was decoded", offset)
	}
	o.refs = append(o.refs, ref{at: o.start + int64(p), offset: uint32(offset), n: uint32(length)})
	return false, nil
}

// recall copies a match to byte p from the past, and the rest of it, if there is
// any, from where the span begins.
func (o *output) recall(p, offset, length int) error {
	buf := o.buf[:cap(o.buf)]
	distance := o.base - (p - offset)
	n := min(length, distance)
	if !o.past.copy(buf[p:p+n], distance) {
		return malformed("match %d bytes before the span, where its index has nothing", distance)
	}
	if n < length {
		overlap(buf[o.base:p+length], p+n-o.base)
	}
	return nil
}

// maxGrowth is by how much a buffer grows at most, bytes. It doubles before.
const maxGrowth = 16 << 20

// slide makes room for n bytes by forgetting all that lies before byte keep, or
// by growing where that would be a poor gain.
func (o *output) slide(keep, n int) {
	if o.room() >= n {
		return
	}
	if keep >= cap(o.buf)/3 {
		o.drop(keep)
		if o.room() >= n {
			return
		}
	}
	grown := make([]byte, len(o.buf), max(len(o.buf)+n+margin, cap(o.buf)+min(cap(o.buf), maxGrowth), 1<<20))
	copy(grown, o.buf)
	o.buf = grown
}

// drop forgets all before byte keep.
func (o *output) drop(keep int) {
	o.buf = o.buf[:copy(o.buf, o.buf[keep:])]
	o.start += int64(keep)
	o.base -= keep
	o.frame -= keep
}
