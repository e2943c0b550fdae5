// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"fmt"
	"iter"
)

// An index is a sorted list of records that do not overlap. It never changes.
type index []record

// find returns the position of the first record that ends after lba.
func (x index) find(lba uint64) int {
	lo, hi := 0, len(x)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if x[mid].end() > lba {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// A piece is a run of bytes of a volume that one read or clear can fill.
type piece struct {
	n    int64 // length in bytes
	data bool  // in the source tag at byte offset at; zeros otherwise
	tag  uint8
	at   int64
}

// piece returns the first piece of the n bytes at off, where the record i is
// the first that ends after off, and the same for what follows the piece.
// Records that continue one another make one piece: writers cut runs at 16383
// sectors and at every write.
func (x index) piece(i int, off, n int64) (piece, int) {
	if i == len(x) {
		return piece{n: n}, i
	}
	r := x[i]
	start := int64(r.lba()) * SectorSize
	if off < start {
		return piece{n: min(n, start-off)}, i
	}
	end := int64(r.end()) * SectorSize
	for i++; end < off+n && i < len(x) && x[i-1].continues(x[i]); i++ {
		end = int64(x[i].end()) * SectorSize
	}
	if r.zeroed() {
		return piece{n: min(n, end-off)}, i
	}
	return piece{n: min(n, end-off), data: true, tag: r.tag(), at: int64(r.source())*SectorSize + off - start}, i
}

// shows reports whether any of n bytes from off is data.
func (x index) shows(off, n int64) bool {
	for i := x.find(uint64(off) / SectorSize); n > 0; {
		p, next := x.piece(i, off, n)
		if p.data {
			return true
		}
		off, n, i = off+p.n, n-p.n, next
	}
	return false
}

// mappings yields the records.
func (x index) mappings() iter.Seq[Mapping] {
	return func(yield func(Mapping) bool) {
		for _, r := range x {
			if !yield(r.mapping()) {
				return
			}
		}
	}
}

// mergeAll returns the index of a pile of layers, bottom first, every record
// tagged with its layer's distance from the top. Neighbours are merged in
// rounds, so that the cost is records × log₂ layers: folding layers one by
// one would walk the growing result once per layer.
func mergeAll(pile []index) (index, error) {
	round := make([]index, len(pile))
	for i, x := range pile {
		round[i] = tagged(x, uint8(len(pile)-1-i))
	}
	for len(round) > 1 {
		var next []index
		for i := 0; i+1 < len(round); i += 2 {
			x, err := merge(round[i], round[i+1])
			if err != nil {
				return nil, err
			}
			next = append(next, x)
		}
		if len(round)%2 == 1 {
			next = append(next, round[len(round)-1])
		}
		round = next
	}
	return round[0], nil
}

func tagged(x index, tag uint8) index {
	out := make(index, len(x))
	for i, r := range x {
		out[i] = r.withTag(tag)
	}
	return out
}

// merge returns the records of top and, in its gaps, those of bottom.
func merge(bottom, top index) (index, error) {
	out := make(index, 0, len(bottom)+len(top))
	at := uint64(0)
	for _, t := range top {
		out, bottom = appendRange(out, bottom, at, t.lba())
		out = append(out, t)
		at = t.end()
		if len(out) > maxMerged {
			return nil, fmt.Errorf("merged index has more than %d records", maxMerged)
		}
	}
	out, _ = appendRange(out, bottom, at, 1<<lbaBits)
	if len(out) > maxMerged {
		return nil, fmt.Errorf("merged index has more than %d records", maxMerged)
	}
	return out, nil
}

// appendRange appends to out what x maps in [from, to). It returns the rest
// of x: the records that end after to.
func appendRange(out, x index, from, to uint64) (index, index) {
	for len(x) > 0 && x[0].lba() < to {
		if x[0].end() > from && from < to {
			out = append(out, x[0].clip(from, to))
		}
		if x[0].end() > to {
			break
		}
		x = x[1:]
	}
	return out, x
}
