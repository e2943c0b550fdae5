// SPDX-License-Identifier: Apache-2.0

package zstdidx

import "encoding/binary"

// literals decodes the literals section in[at:end] of a block, and returns
// where it ends. The literals are d.lits[:d.litCount], with room behind for
// reading whole words.
func (d *decoder) literals(in []byte, at, end int) (int, error) {
	if at >= end {
		return 0, malformed("block without literals section")
	}
	// The block's buffer goes on for margin bytes.
	kind, format := in[at]&3, in[at]>>2&3
	if kind < 2 {
		return d.plainLiterals(in, at, end, kind, format)
	}
	head, width := 3, 10
	switch format {
	case 2:
		head, width = 4, 14
	case 3:
		head, width = 5, 18
	}
	v := binary.LittleEndian.Uint64(in[at:]) >> 4
	size, stored := int(v)&(1<<width-1), int(v>>width)&(1<<width-1)
	at += head
	if stored > end-at {
		return 0, malformed("literals of %d bytes, block has %d", stored, end-at)
	}
	if size > d.frame.blockMax {
		return 0, malformed("%d literals in a block", size)
	}
	end = at + stored
	if kind == 2 {
		n, err := d.tables.makeHuffman(in, at, end)
		if err != nil {
			return 0, err
		}
		at += n
	} else if err := d.tables.repeat(tableHuffman); err != nil {
		return 0, err
	}
	d.lits, d.litCount = d.scratch, size
	decode := d.tables.huffman.decode4
	if format == 0 {
		decode = d.tables.huffman.decode1
	}
	return end, decode(d.scratch[:size], in, at, end)
}

// plainLiterals does what literals does for those stored as they are, or as
// one byte that is repeated.
func (d *decoder) plainLiterals(in []byte, at, end int, kind, format byte) (int, error) {
	v := binary.LittleEndian.Uint32(in[at:])
	size, head := int(v>>3&0x1f), 1
	switch format {
	case 1:
		size, head = int(v>>4&0xfff), 2
	case 3:
		size, head = int(v>>4&0xfffff), 3
	}
	if size > d.frame.blockMax {
		return 0, malformed("%d literals in a block", size)
	}
	at += head
	stored := size
	if kind == 1 {
		stored = 1
	}
	if stored > end-at {
		return 0, malformed("literals of %d bytes, block has %d", stored, end-at)
	}
	d.litCount = size
	if kind == 0 {
		d.lits = in[at:]
		return at + size, nil
	}
	d.lits = d.scratch
	fill(d.scratch[:size], in[at])
	return at + 1, nil
}

// fill sets all of p to c.
func fill(p []byte, c byte) {
	if len(p) == 0 {
		return
	}
	p[0] = c
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}
