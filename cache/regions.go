// SPDX-License-Identifier: Apache-2.0

package cache

// regions remembers how often reads of a blob had to wait, by parts of it that
// are as large as the largest request. The first in a region may be the only
// one, such as that of a header. From the second on requests are four extents,
// which spares a program's start round trips. Where they have asked for half of
// a region, or more on a thin link, the rest comes too; and who has read two
// regions in a row like that reads everything, in whatever order, such as tar, and
// gets the next ones whole.
type regions map[int64]int

const (
	// few reads are not enough to tell that a region is read in whole.
	few = 4

	// whole is the number of reads of a region that is asked for in whole.
	whole = 1 << 20
)

// enter takes note of a read of bytes [off, end) that had to wait, where no
// stream was expected. Bytes that are coming, because somebody knew that they
// would be read, tell nothing of others around them, unless they come because
// all of the region does.
func (r *regions) enter(off, end, extent, most, dense int64, coming bool) move {
	if *r == nil {
		*r = make(regions)
	}
	region := off / most
	if coming && (*r)[region] < whole {
		return move{unit: extent, now: end}
	}
	(*r)[region]++
	switch {
	case r.asked(region-1, extent) >= dense && r.asked(region-2, extent) >= dense:
		(*r)[region], (*r)[region+1] = whole, whole
		return move{unit: most, now: end, from: region * most, ahead: (region + 2) * most}
	case r.asked(region, extent) >= dense:
		return move{unit: most, now: end, from: region * most, ahead: (region + 1) * most}
	case (*r)[region] > 1:
		return move{unit: min(4*extent, most), now: end}
	}
	return move{unit: extent, now: end}
}

// asked returns about how many bytes of a region have been asked for.
func (r *regions) asked(region, extent int64) int64 {
	if n := int64((*r)[region]); n >= few {
		return n * 4 * extent
	}
	return 0
}
