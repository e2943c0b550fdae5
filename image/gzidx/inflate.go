// SPDX-License-Identifier: Apache-2.0

package gzidx

import "encoding/binary"

const (
	windowSize = 32 << 10 // bytes a match may reach back (RFC 1951)
	maxMatch   = 258

	// slack is how much room the output needs for decoding to go on: three
	// literals, a match, and what copying it by words writes too much.
	slack = 3 + maxMatch + 16

	// maxHeader is how long the header of a block can be, in bytes: 17 bits,
	// 19 code lengths of 3 bits, 320 codes of up to 14 with their counts, and
	// what is loaded with the last of them.
	maxHeader = 3 + 8 + 320*14/8 + 16
)

// An inflater decodes DEFLATE blocks. It can start at any block, given what
// came before it, and stops behind each.
//
// The history of what it decodes is out[low:w]. The caller moves it, or makes
// out longer, when there is no room.
type inflater struct {
	input

	out    []byte
	w, low int

	final  bool // this block is the last
	inside bool // of a block
	stored int  // bytes that are left of a stored block
	coded  bool // the block is not a stored one

	literals  *literalTable // of this block
	distances *distanceTable

	dynamic, fixed *tables // fixed is made when needed
	literalKind    *[288]uint32
	distanceKind   *[32]uint32
	lengths        [320]uint8
}

type tables struct {
	literals  literalTable
	distances distanceTable
}

func newInflater() *inflater {
	return &inflater{dynamic: new(tables), literalKind: literalEntries(), distanceKind: distanceEntries()}
}

// begin makes f ready for a block at the input's next bit.
func (f *inflater) begin() { f.final, f.inside, f.stored = false, false, 0 }

// header reads the header of a block.
func (f *inflater) header() error {
	if err := f.want(maxHeader); err != nil {
		return err
	}
	if err := f.refill(); err != nil {
		return err
	}
	f.final = f.take(1) == 1
	f.inside = true
	var err error
	switch kind := f.take(2); kind {
	case 0:
		f.coded = false
		err = f.storedHeader()
	case 1:
		f.coded = true
		f.useFixed()
	case 2:
		f.coded = true
		err = f.dynamicHeader()
	default:
		err = errBlockType
	}
	if f.overrun() {
		return errTruncated
	}
	return err
}

func (f *inflater) storedHeader() error {
	if err := f.align(); err != nil {
		return err
	}
	if f.end-f.pos < 4 {
		return errTruncated
	}
	n, inverse := binary.LittleEndian.Uint16(f.in[f.pos:]), binary.LittleEndian.Uint16(f.in[f.pos+2:])
	if n != ^inverse {
		return errStored
	}
	f.pos += 4
	f.stored = int(n)
	return nil
}

func (f *inflater) useFixed() {
	if f.fixed == nil {
		f.fixed = new(tables)
		var n [320]uint8
		for i := range n {
			switch {
			case i < 144, i >= 280 && i < 288:
				n[i] = 8
			case i < 256:
				n[i] = 9
			case i < 280:
				n[i] = 7
			default:
				n[i] = 5
			}
		}
		fillTable(f.fixed.literals[:], literalRoot, n[:288], f.literalKind[:])
		fillTable(f.fixed.distances[:], distanceRoot, n[288:], f.distanceKind[:])
	}
	f.literals, f.distances = &f.fixed.literals, &f.fixed.distances
}

func (f *inflater) dynamicHeader() error {
	literals, distances, lengths := 257+f.take(5), 1+f.take(5), 4+f.take(4)
	if literals > 286 || distances > 30 {
		return errLengths
	}
	if err := f.readLengths(literals+distances, lengths); err != nil {
		return err
	}
	n := f.lengths[:literals+distances]
	if n[256] == 0 {
		return errLengths
	}
	if !fillTable(f.dynamic.literals[:], literalRoot, n[:literals], f.literalKind[:]) ||
		!fillTable(f.dynamic.distances[:], distanceRoot, n[literals:], f.distanceKind[:]) {
		return errLengths
	}
	f.literals, f.distances = &f.dynamic.literals, &f.dynamic.distances
	return nil
}

// lengthOrder is the order in which code lengths of code lengths are stored.
var lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// lengthKind are the entries of code lengths: literals, with the extra bits of
// those that stand for repetition.
var lengthKind = [19]uint32{
	0, 1 << 16, 2 << 16, 3 << 16, 4 << 16, 5 << 16, 6 << 16, 7 << 16, 8 << 16, 9 << 16,
	10 << 16, 11 << 16, 12 << 16, 13 << 16, 14 << 16, 15 << 16, 16<<16 | 2, 17<<16 | 3, 18<<16 | 7,
}

// readLengths reads n code lengths, which are coded themselves: by a code of
// which the lengths of m symbols come first.
func (f *inflater) readLengths(n, m int) error {
	var own [19]uint8
	for _, sym := range lengthOrder[:m] {
		if err := f.refill(); err != nil {
			return err
		}
		own[sym] = uint8(f.take(3))
	}
	var table lengthTable
	if !fillTable(table[:], lengthRoot, own[:], lengthKind[:]) {
		return errLengths
	}
	for i := 0; i < n; {
		if err := f.refill(); err != nil {
			return err
		}
		e := table[f.b&(1<<lengthRoot-1)]
		if e&entryOdd != 0 {
			return errLengths
		}
		repeated := int(f.b & (1<<(e&63) - 1) >> (e >> 8 & 15))
		f.take(uint(e & 63))
		var err error
		if i, err = f.repeatLength(i, n, int(e>>16), repeated); err != nil {
			return err
		}
	}
	return nil
}

// repeatLength sets code length i of n, and those after it that symbol sym
// says are the same. It returns the next to be set.
func (f *inflater) repeatLength(i, n, sym, repeated int) (int, error) {
	var length uint8
	switch sym {
	case 16:
		if i == 0 {
			return 0, errLengths
		}
		length, repeated = f.lengths[i-1], 3+repeated
	case 17:
		repeated += 3
	case 18:
		repeated += 11
	default:
		length, repeated = uint8(sym), 1
	}
	if repeated > n-i {
		return 0, errLengths
	}
	for ; repeated > 0; repeated-- {
		f.lengths[i] = length
		i++
	}
	return i, nil
}

// body decodes the block until its end or until there is no room, and reports
// whether it ended.
func (f *inflater) body() (ended bool, err error) {
	for !ended && len(f.out)-f.w >= slack {
		if f.coded {
			ended, err = f.symbols()
		} else {
			ended, err = f.copyStored()
		}
		if f.overrun() {
			return false, errTruncated
		}
		if err != nil {
			return false, err
		}
		if !ended && f.coded && f.pos > f.limit {
			if err := f.more(); err != nil {
				return false, err
			}
		}
	}
	f.inside = !ended
	return ended, nil
}

func (f *inflater) copyStored() (ended bool, err error) {
	if f.stored == 0 {
		return true, nil
	}
	if err := f.want(1); err != nil {
		return false, err
	}
	n := copy(f.out[f.w:], f.in[f.pos:min(f.end, f.pos+f.stored)])
	if n == 0 {
		return false, errTruncated
	}
	f.pos += n
	f.w += n
	f.stored -= n
	return f.stored == 0, nil
}

// symbols is the hot loop: it decodes until the block ends or input or room
// runs short. Everything it uses is in local variables, which spares memory
// traffic, hence its length. It loads bits eight bytes at a time: 56 are known
// after each load, of which three literals take 45 at most, or a length and a
// distance 48.
func (f *inflater) symbols() (ended bool, err error) {
	in, pos, limit, b, n := f.in, f.pos, f.limit, f.b, f.n
	out, w := f.out, f.w
	low, full := f.low, len(out)-slack
	literals, distances := f.literals, f.distances

	for pos <= limit && w <= full {
		b |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56

		e := literals[b&(1<<literalRoot-1)]
		if e&entryLiteral != 0 {
			b >>= e & 63
			n -= uint(e & 63)
			out[w] = byte(e >> 16)
			w++
			if e = literals[b&(1<<literalRoot-1)]; e&entryLiteral != 0 {
				b >>= e & 63
				n -= uint(e & 63)
				out[w] = byte(e >> 16)
				w++
				if e = literals[b&(1<<literalRoot-1)]; e&entryLiteral != 0 {
					b >>= e & 63
					n -= uint(e & 63)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
			if pos > limit {
				break
			}
			b |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
			pos += int((63 - n) >> 3)
			n |= 56
		}
		if e&entryOdd != 0 {
			if e&entryLink == entryLink {
				b >>= literalRoot
				n -= literalRoot
				e = literals[(e>>16+uint32(b)&(1<<(e>>8&15)-1))&(literalSize-1)]
				if e&entryLiteral != 0 {
					b >>= e & 63
					n -= uint(e & 63)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
			if e&entryOdd != 0 {
				b >>= e & 63
				n -= uint(e & 63)
				if ended = e&entryEnd == entryEnd; !ended {
					err = errCode
				}
				break
			}
		}
		length := int(e>>16) + int(b&(1<<(e&63)-1)>>(e>>8&15))
		b >>= e & 63
		n -= uint(e & 63)

		e = distances[b&(1<<distanceRoot-1)]
		if e&entryOdd != 0 {
			if e&entryLink == entryLink {
				b >>= distanceRoot
				n -= distanceRoot
				e = distances[(e>>16+uint32(b)&(1<<(e>>8&15)-1))&(distanceSize-1)]
			}
			if e&entryOdd != 0 {
				err = errCode
				break
			}
		}
		distance := int(e>>16) + int(b&(1<<(e&63)-1)>>(e>>8&15))
		b >>= e & 63
		n -= uint(e & 63)

		from, to := w-distance, w+length
		if from < low {
			err = errDistance
			break
		}
		switch {
		case distance >= 8 && length <= 32:
			binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
			for w += 8; w < to; w += 8 {
				from += 8
				binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
			}
		case distance >= length:
			copy(out[w:to], out[from:])
		default:
			for w < to { // twice as much each time
				w += copy(out[w:to], out[from:w])
			}
		}
		w = to
	}
	f.pos, f.b, f.n, f.w = pos, b, n, w
	return ended, err
}
