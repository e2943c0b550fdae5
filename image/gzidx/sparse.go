// SPDX-License-Identifier: Apache-2.0

package gzidx

import "bytes"

// A marker finds out which bytes of a window are referred to by what follows.
// The others are not worth storing: as zeros they compress to nothing.
type marker struct {
	f    *inflater
	used [windowSize]bool
	pos  int // bytes since the point
}

// clean zeroes the bytes of the window that no match refers to. data is the
// compressed data from the byte on that holds the first bit. If it cannot tell,
// because data ends early, it leaves the window as it is.
func (m *marker) clean(window, data []byte, bit uint8) {
	m.used, m.pos = [windowSize]bool{}, 0
	m.f.reset(bytes.NewReader(data), 0)
	m.f.begin()
	if err := m.mark(bit); err != nil {
		return
	}
	for i, used := range m.used {
		if !used {
			window[i] = 0
		}
	}
}

// mark goes through the blocks until matches cannot reach the window any more.
func (m *marker) mark(bit uint8) error {
	if err := m.f.skip(bit); err != nil {
		return err
	}
	for m.pos < windowSize && !m.f.final {
		if err := m.f.header(); err != nil {
			return err
		}
		if err := m.block(); err != nil {
			return err
		}
	}
	return nil
}

func (m *marker) block() error {
	if m.f.coded {
		return m.symbols()
	}
	m.pos += m.f.stored
	if err := m.f.want(m.f.stored); err != nil {
		return err
	}
	m.f.pos += m.f.stored
	if m.f.pos > m.f.end {
		return errTruncated
	}
	return nil
}

// symbols is what inflater.symbols is, without output.
func (m *marker) symbols() error {
	f := m.f
	for m.pos < windowSize {
		if f.pos > f.limit {
			if err := f.more(); err != nil {
				return err
			}
			continue
		}
		e, err := f.symbol()
		if err != nil {
			return err
		}
		switch {
		case e&entryLiteral != 0:
			m.pos++
		case e&entryEnd == entryEnd:
			return nil
		default:
			if err := m.match(e); err != nil {
				return err
			}
		}
		if f.overrun() {
			return errTruncated
		}
	}
	return nil
}

// match marks the source of the match whose length is that of entry e.
func (m *marker) match(e uint32) error {
	length := m.f.value(e)
	d, err := m.f.distance()
	if err != nil {
		return err
	}
	from := windowSize + m.pos - m.f.value(d)
	if from < 0 {
		return errDistance
	}
	for i := from; i < min(from+length, windowSize); i++ {
		m.used[i] = true
	}
	m.pos += length
	return nil
}

// symbol reads a code for a literal, a length or the end of the block, and
// consumes it but for lengths. There must be eight bytes of input.
func (f *inflater) symbol() (uint32, error) {
	if err := f.refill(); err != nil {
		return 0, err
	}
	e := f.literals[f.b&(1<<literalRoot-1)]
	if e&entryLink == entryLink {
		f.take(literalRoot)
		e = f.literals[(e>>16+uint32(f.b)&(1<<(e>>8&15)-1))&(literalSize-1)]
	}
	if e&(entryLiteral|entryOdd) != 0 {
		f.take(uint(e & 63))
	}
	if e&entryLiteral == 0 && e&entryInvalid == entryInvalid {
		return 0, errCode
	}
	return e, nil
}

// distance reads a code for a distance, as far as its extra bits.
func (f *inflater) distance() (uint32, error) {
	e := f.distances[f.b&(1<<distanceRoot-1)]
	if e&entryLink == entryLink {
		f.take(distanceRoot)
		e = f.distances[(e>>16+uint32(f.b)&(1<<(e>>8&15)-1))&(distanceSize-1)]
	}
	if e&entryOdd != 0 {
		return 0, errCode
	}
	return e, nil
}

// value consumes the code and extra bits of entry e and returns what they
// stand for.
func (f *inflater) value(e uint32) int {
	code := e >> 8 & 15
	v := f.take(uint(e & 63))
	return int(e>>16) + v>>code
}
