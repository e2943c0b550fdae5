// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"slices"
	"sort"
)

// maxChunk is the length, in records, at which a chunk of extents is split:
// 16 KiB, cheap to shift on insert, few enough chunks to search.
const maxChunk = 1024

// extents is an index that changes: a sorted list of records that do not
// overlap, cut into chunks so that an insert moves one chunk, not all.
type extents struct {
	chunks []index // none is empty
}

// find returns the chunk and position of the first record that ends after
// lba; the chunk is len(chunks) when there is none.
func (e *extents) find(lba uint64) (chunk, i int) {
	chunk = sort.Search(len(e.chunks), func(c int) bool {
		x := e.chunks[c]
		return x[len(x)-1].end() > lba
	})
	if chunk < len(e.chunks) {
		i = e.chunks[chunk].find(lba)
	}
	return chunk, i
}

// insert makes r the mapping of its sectors; what was there is cut or gone.
func (e *extents) insert(r record) {
	e.split(r.lba())
	e.split(r.end())
	from, i := e.find(r.lba())
	to, j := e.find(r.end())
	if from == len(e.chunks) {
		if from == 0 {
			e.chunks = []index{{r}}
			return
		}
		from--
		i = len(e.chunks[from])
	}
	if from == to {
		e.chunks[from] = slices.Replace(e.chunks[from], i, j, r)
	} else {
		e.chunks[from] = append(e.chunks[from][:i], r)
		if to < len(e.chunks) {
			e.chunks[to] = e.chunks[to][j:]
		}
		e.chunks = slices.Delete(e.chunks, from+1, to)
	}
	e.balance(from)
}

// split cuts the record that has lba inside it, if any, in two at lba.
func (e *extents) split(lba uint64) {
	c, i := e.find(lba)
	if c == len(e.chunks) || e.chunks[c][i].lba() >= lba {
		return
	}
	r := e.chunks[c][i]
	e.chunks[c] = slices.Replace(e.chunks[c], i, i+1, r.clip(r.lba(), lba), r.clip(lba, r.end()))
	e.balance(c)
}

func (e *extents) balance(c int) {
	x := e.chunks[c]
	if len(x) <= maxChunk {
		return
	}
	half := len(x) / 2
	e.chunks = slices.Insert(e.chunks, c+1, slices.Clone(x[half:]))
	e.chunks[c] = x[:half:half]
}

// flat returns all records as an index of its own.
func (e *extents) flat() index { return slices.Concat(e.chunks...) }

// A span is a run of bytes of a volume as one writable layer has it.
type span struct {
	n    int64 // length in bytes
	kind spanKind
	tag  uint8 // of the source, for spanData
	at   int64 // byte offset of the bytes in the source, for spanData
}

type spanKind uint8

const (
	spanHole spanKind = iota // not mapped: the layer below shows
	spanZero
	spanData
)

// spans fills out with what covers the bytes from off, n of them at most, and
// returns how many elements it used. It allocates nothing.
func (e *extents) spans(off, n int64, out []span) (used int) {
	c, i := e.find(uint64(off) / SectorSize)
	for used < len(out) && n > 0 {
		var s span
		switch {
		case c == len(e.chunks):
			s = span{n: n}
		default:
			s = e.chunks[c][i].span(off, n)
		}
		out[used] = s
		used++
		off, n = off+s.n, n-s.n
		if c < len(e.chunks) && int64(e.chunks[c][i].end())*SectorSize <= off {
			if i++; i == len(e.chunks[c]) {
				c, i = c+1, 0
			}
		}
	}
	return used
}

// span returns how r, or the gap before it, covers the first of n bytes at
// off; off lies before the end of r.
func (r record) span(off, n int64) span {
	start := int64(r.lba()) * SectorSize
	if off < start {
		return span{n: min(n, start-off)}
	}
	n = min(n, int64(r.end())*SectorSize-off)
	if r.zeroed() {
		return span{n: n, kind: spanZero}
	}
	return span{n: n, kind: spanData, tag: r.tag(), at: int64(r.source())*SectorSize + off - start}
}
