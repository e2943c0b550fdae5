// SPDX-License-Identifier: Apache-2.0

package cache

import "sync"

// readahead finds the streams among the reads of one Blob that had to wait for
// the source. Reads served from disk do not pass here: a stream shows by its
// misses, each of which starts where the last request ended.
//
// It also remembers where any were. Files that a program opens lie in clusters,
// and each jump within one costs a round trip.
type readahead struct {
	mu      sync.Mutex // guards all below
	streams [4]stream  // as many files are read in order at once from one blob
	oldest  int
	missed  map[int64]bool // regions, as large as the largest request
}

// A stream is a sequence of reads that move forward.
type stream struct {
	start  int64 // of the bytes asked for last, for a reader
	mark   int64 // end of those, and start of the bytes asked for ahead
	next   int64 // end of the bytes asked for ahead
	window int64 // bytes asked for at once
}

// advance takes note of a read of bytes [off, end) that had to wait. It
// returns the end of what to ask for now, the end of what to ask for ahead of
// the reader beyond that, or 0, and the unit, in bytes, that the first request
// is to fill.
func (r *readahead) advance(off, end int64, extent, most int64) (now, ahead, unit int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.streams {
		st := &r.streams[i]
		switch {
		case st.window == 0 || off < st.start || off >= st.next+extent:
		case off < st.mark: // within what was asked for
			return end, 0, extent
		case off < st.next: // the reader came to what was asked for ahead
			return end, st.ahead(most), extent
		default:
			unit = r.unit(off, extent, most)
			now, ahead = st.grow(off, end, unit, extent, most)
			return now, ahead, unit
		}
	}
	unit = r.unit(off, extent, most)
	next := max(off&^(unit-1)+unit, alignUp(end, extent))
	r.streams[r.oldest] = stream{start: off, mark: next, next: next, window: extent}
	r.oldest = (r.oldest + 1) % len(r.streams)
	return end, 0, unit
}

// unit takes note of a read beyond all that was asked for, and returns the unit
// to ask in. The first in a region may be the only one, such as that of a header.
// From the second on it is four extents, which takes a quarter of the round
// trips from a program's start for a seventh more bytes; see BenchmarkColdStart of
// tests/bench.
func (r *readahead) unit(off, extent, most int64) (unit int64) {
	region := off / most
	if r.missed[region] {
		return min(4*extent, most)
	}
	if r.missed == nil {
		r.missed = make(map[int64]bool)
	}
	r.missed[region] = true
	return extent
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
func (st *stream) grow(off, end, unit, extent, most int64) (now, ahead int64) {
	st.window = min(2*st.window, most)
	now = max(end, off&^(extent-1)+st.window, off&^(unit-1)+unit)
	st.start, st.mark, st.next = off, alignUp(now, extent), alignUp(now, extent)
	if st.window < 4*extent && st.window < most {
		return now, 0
	}
	st.next += st.window
	return now, st.next
}

// alignUp returns n rounded up to a multiple of unit, a power of two.
func alignUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
