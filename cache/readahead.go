// SPDX-License-Identifier: Apache-2.0

package cache

import "sync"

// readahead finds the streams among the reads of one Blob that had to wait for
// the source. Reads served from disk do not pass here: a stream shows by its
// misses, each of which starts where the last request ended.
type readahead struct {
	mu      sync.Mutex // guards all below
	streams [4]stream  // as many files are read in order at once from one blob
	oldest  int
}

// A stream is a sequence of reads that move forward.
type stream struct {
	start  int64 // of the bytes asked for last, for a reader
	mark   int64 // end of those, and start of the bytes asked for ahead
	next   int64 // end of the bytes asked for ahead
	window int64 // bytes asked for at once
}

// advance takes note of a read of bytes [off, end) that had to wait. It
// returns the end of what to ask for now, and the end of what to ask for ahead
// of the reader beyond that, or 0.
func (r *readahead) advance(off, end int64, extent, most int64) (now, ahead int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.streams {
		st := &r.streams[i]
		switch {
		case st.window == 0 || off < st.start || off >= st.next+extent:
		case off < st.mark: // within what was asked for
			return end, 0
		case off < st.next: // the reader came to what was asked for ahead
			return end, st.ahead(most)
		default:
			return st.grow(off, end, extent, most)
		}
	}
	r.streams[r.oldest] = newStream(off, end, extent)
	r.oldest = (r.oldest + 1) % len(r.streams)
	return end, 0
}

func newStream(off, end, extent int64) stream {
	next := alignUp(end, extent)
	return stream{start: off, mark: next, next: next, window: extent}
}

// ahead moves the bytes asked for ahead to the reader, and asks for the next.
func (st *stream) ahead(most int64) int64 {
	st.window = min(2*st.window, most)
	st.start, st.mark, st.next = st.mark, st.next, st.next+st.window
	return st.next
}

// grow follows a reader that came to the end of what was asked for. From the
// second time in a row it also asks ahead, so that the reader sees no more
// round trips; see BenchmarkColdSeq. The first time it does not: the end of
// most files is near.
func (st *stream) grow(off, end, extent, most int64) (now, ahead int64) {
	st.window = min(2*st.window, most)
	now = max(end, alignUp(off+1, extent)-extent+st.window)
	st.start, st.mark, st.next = off, alignUp(now, extent), alignUp(now, extent)
	if st.window < 4*extent && st.window < most {
		return now, 0
	}
	st.next += st.window
	return now, st.next
}

// alignUp returns n rounded up to a multiple of unit, a power of two.
func alignUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
