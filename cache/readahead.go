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
	regions regions
}

// A stream is a sequence of reads that move forward.
type stream struct {
	start  int64 // of the bytes asked for last, for a reader
	mark   int64 // end of those, and start of the bytes asked for ahead
	next   int64 // end of the bytes asked for ahead
	window int64 // bytes asked for at once
}

// A move is what to ask for when a read had to wait.
type move struct {
	unit        int64 // what the first request is to fill, bytes
	now         int64 // end of what to ask for at once
	from, ahead int64 // what to ask for besides, ahead of the reader
	whole       bool  // the reader goes through spans
}

// advance takes note of a read of bytes [off, end) that had to wait, for bytes
// that are coming or that nobody has asked for. Of a region dense bytes must have
// been asked for until all of it is.
func (r *readahead) advance(off, end int64, extent, most, dense int64, coming bool) move {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.streams {
		st := &r.streams[i]
		switch {
		case st.window == 0 || off < st.start || off >= st.next+extent:
		case off < st.mark: // within what was asked for
			return move{unit: extent, now: end}
		case off < st.next: // the reader came to what was asked for ahead
			return move{unit: extent, now: end, from: end, ahead: st.ahead(most)}
		default:
			m := r.regions.enter(off, end, extent, most, dense, coming)
			st.grow(&m, off, extent, most)
			return m
		}
	}
	m := r.regions.enter(off, end, extent, most, dense, coming)
	next := max(off&^(m.unit-1)+m.unit, alignUp(end, extent))
	r.streams[r.oldest] = stream{start: off, mark: next, next: next, window: extent}
	r.oldest = (r.oldest + 1) % len(r.streams)
	return m
}

// follow is advance for a source that makes spans, of which those wanted are
// bytes [lo, hi). They are large, so nothing is asked for besides them until
// the third in a row. edge returns the end of the span that a byte is in.
func (r *readahead) follow(off, lo, hi, most int64, edge func(int64) int64) move {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.streams {
		st := &r.streams[i]
		switch {
		case st.window == 0 || off < st.start || lo > st.next:
		case off < st.mark:
			return move{}
		case off < st.next:
			from := st.next
			st.next = min(edge(st.ahead(most)-1), from+2*most)
			return move{from: from, ahead: st.next}
		default:
			st.window = min(2*st.window, most)
			st.start, st.mark, st.next = lo, hi, hi
			if st.window < 4*(hi-lo) && st.window < most {
				return move{whole: true}
			}
			st.next = min(edge(hi+st.window-1), hi+2*most)
			return move{from: hi, ahead: st.next, whole: true}
		}
	}
	r.streams[r.oldest] = stream{start: lo, mark: hi, next: hi, window: hi - lo}
	r.oldest = (r.oldest + 1) % len(r.streams)
	return move{}
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
func (st *stream) grow(m *move, off, extent, most int64) {
	st.window = min(2*st.window, most)
	m.now = max(m.now, off&^(extent-1)+st.window, off&^(m.unit-1)+m.unit)
	st.start, st.mark, st.next = off, alignUp(m.now, extent), alignUp(m.now, extent)
	if st.window < 4*extent && st.window < most {
		return
	}
	st.next += st.window
	m.from, m.ahead = m.now, max(m.ahead, st.next)
}

// alignUp returns n rounded up to a multiple of unit, a power of two.
func alignUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
