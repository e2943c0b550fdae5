// SPDX-License-Identifier: Apache-2.0

package zstdidx

import "encoding/binary"

// sequences decodes the sequences section in[at:end] of a block and carries it
// out: the block's content goes to the output.
func (d *decoder) sequences(in []byte, at, end int) error {
	n, at, err := d.sequenceTables(in, at, end)
	if err != nil {
		return err
	}
	done := 0 // literals
	if n > 0 {
		r, err := newBackward(in, at, end)
		if err != nil {
			return err
		}
		if done, err = d.execute(r, n); err != nil {
			return err
		}
	}
	return d.out.append(d.lits[done:d.litCount])
}

// sequenceTables reads what precedes the sequences: it returns their number,
// and where their bit stream begins.
func (d *decoder) sequenceTables(in []byte, at, end int) (n, start int, err error) {
	if at >= end {
		return 0, 0, malformed("block without sequences section")
	}
	n = int(in[at])
	switch {
	case n == 255:
		n = int(binary.LittleEndian.Uint16(in[at+1:])) + 0x7f00
		at += 3
	case n >= 128:
		n = (n-128)<<8 + int(in[at+1])
		at += 2
	default:
		at++
	}
	if n == 0 {
		if at != end {
			return 0, 0, malformed("%d bytes behind a block without sequences", end-at)
		}
		return 0, at, nil
	}
	if at >= end {
		return 0, 0, malformed("block ends in the head of its sequences")
	}
	modes := in[at]
	at++
	if modes&3 != 0 {
		return 0, 0, malformed("reserved bits of sequences set")
	}
	for i, k := range [...]int{tableLengths, tableOffsets, tableMatches} {
		if at > end {
			return 0, 0, malformed("block ends in a table")
		}
		size, err := d.tables.make(k, modes>>(6-2*i)&3, in[at:end])
		if err != nil {
			return 0, 0, err
		}
		at += size
	}
	return n, at, nil
}

// wide is how far a copy of a short match or of few literals goes at once,
// beyond their end.
const wide = 16

// execute decodes n sequences from r, copies literals and matches to the
// output, and returns the number of literals used. It is one loop, long as it
// is, because it takes most of the time of all there is here.
func (d *decoder) execute(r backward, n int) (used int, err error) {
	t, o := &d.tables, &d.out
	lengths, offsets, matches := &t.steps[tableLengths], &t.steps[tableOffsets], &t.steps[tableMatches]
	ls := r.take(int(t.logs[tableLengths]))
	os := r.take(int(t.logs[tableOffsets]))
	ms := r.take(int(t.logs[tableMatches]))
	if r.rem < 0 {
		return 0, malformed("sequences without states")
	}
	in, base, rem := r.b, r.start-8, r.rem
	rep0, rep1, rep2 := d.reps[0], d.reps[1], d.reps[2]
	lits, litCount := d.lits, d.litCount
	buf := o.buf[:cap(o.buf)]
	p := len(o.buf)
	limit := min(p+d.frame.blockMax, len(buf)-margin)
	window := d.frame.window
	near := max(o.base, o.frame) // matches from here on are in the output
	for i := 0; ; i++ {
		e := (rem + 7) >> 3
		v := binary.LittleEndian.Uint64(in[base+e:]) << (uint(e<<3-rem) & 63)
		ll, of, ml := lengths[ls&(maxStates-1)], offsets[os&(maxStates-1)], matches[ms&(maxStates-1)]
		offset := int(of.base) + int(top(v, of.extra))
		v <<= of.extra & 63
		length := int(ml.base) + int(top(v, ml.extra))
		v <<= ml.extra & 63
		rem -= int(of.extra + ml.extra)
		if of.extra+ml.extra+ll.extra > 31 {
			e := (rem + 7) >> 3
			v = binary.LittleEndian.Uint64(in[base+e:]) << (uint(e<<3-rem) & 63)
		}
		literals := int(ll.base) + int(top(v, ll.extra))
		v <<= ll.extra & 63
		rem -= int(ll.extra)

		if offset > 3 {
			offset -= 3
			rep0, rep1, rep2 = offset, rep0, rep1
		} else {
			if ll.base == 0 {
				offset++
			}
			switch offset {
			case 1:
				offset = rep0
			case 2:
				offset = rep1
				rep0, rep1 = offset, rep0
			case 3:
				offset = rep2
				rep0, rep1, rep2 = offset, rep0, rep1
			default:
				offset = rep0 - 1
				rep0, rep1, rep2 = offset, rep0, rep1
			}
		}

		if literals > litCount-used || literals+length > limit-p {
			return 0, malformed("sequence of %d literals and %d more bytes, room for %d", literals, length, limit-p)
		}
		if literals <= wide {
			*(*[wide]byte)(buf[p:]) = *(*[wide]byte)(lits[used:])
		} else {
			copy(buf[p:p+literals], lits[used:])
		}
		used += literals
		p += literals
		if offset > window || offset <= 0 {
			return 0, malformed("match of offset %d, window is %d", offset, window)
		}
		from, copied := p-offset, false
		if from < near {
			if copied, err = o.far(p, offset, length); err != nil {
				return 0, err
			}
		}
		switch {
		case copied:
		case offset < wide:
			overlap(buf[from:p+length], offset)
		case length <= wide:
			*(*[wide]byte)(buf[p:]) = *(*[wide]byte)(buf[from:])
		case length <= 2*wide:
			*(*[wide]byte)(buf[p:]) = *(*[wide]byte)(buf[from:])
			*(*[wide]byte)(buf[p+wide:]) = *(*[wide]byte)(buf[from+wide:])
		case offset >= length:
			copy(buf[p:p+length], buf[from:])
		default:
			overlap(buf[from:p+length], offset)
		}
		p += length

		if rem < 0 || i == n-1 {
			break
		}
		ls = int(ll.next) + int(top(v, ll.bits))
		v <<= ll.bits & 63
		ms = int(ml.next) + int(top(v, ml.bits))
		v <<= ml.bits & 63
		os = int(of.next) + int(top(v, of.bits))
		rem -= int(ll.bits + ml.bits + of.bits)
		if rem < 0 {
			break
		}
	}
	if rem != 0 {
		return 0, malformed("sequences end %d bits before their bit stream", rem)
	}
	o.buf = buf[:p]
	d.reps = [3]int{rep0, rep1, rep2}
	return used, nil
}

// overlap repeats the first period bytes of p to its end.
func overlap(p []byte, period int) {
	for n := period; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}
