// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	stateSize = 40 // without tables and history

	// maxGap is how many bytes that no match takes are kept so as not to begin
	// another extent.
	maxGap = 8

	// maxHistory bounds a history, unpacked, by the size of its span: all but a
	// few extents begin with 3 bytes that the span has too, and for each of them
	// there are at most maxGap bytes that it has not, or two numbers of 4 bytes.
	// The few have room in historyRoom bytes.
	maxHistory  = 4
	historyRoom = 64
)

// A state is what a span that begins inside a frame needs to be decoded.
type state struct {
	frame   frame
	reps    [3]int
	tables  [tableCount]recipe // those it uses before it makes its own
	extents int
	history int    // bytes, unpacked
	packed  []byte // a zstd frame: extents, their bytes; empty if there are none
}

// A packed is the history of a span as it is stored.
type packed struct {
	extents, history int
	b                []byte
}

// A packer packs histories.
type packer struct{ z *zstd.Encoder }

// pack returns what is marked of the bytes before a span.
func (p *packer) pack(m *marks, before []byte) packed {
	if m.count == 0 {
		return packed{}
	}
	all := m.extents(maxGap)
	n, last := 0, 0
	for _, e := range all {
		n += e.n + 8
	}
	b := make([]byte, 0, n)
	for i, e := range all {
		skip := e.distance
		if i > 0 {
			skip = last - e.distance
		}
		b = binary.AppendUvarint(b, uint64(skip))
		b = binary.AppendUvarint(b, uint64(e.n))
		last = e.distance - e.n
	}
	for _, e := range all {
		b = append(b, before[len(before)-e.distance:][:e.n]...)
	}
	if p.z == nil {
		// Only a reader or writer and the options can make this fail.
		p.z, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	}
	return packed{len(all), len(b), p.z.EncodeAll(b, nil)}
}

// append appends s, with the history p, to b.
func (s *state) append(b []byte, p packed) []byte {
	var h [stateSize]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(s.frame.window))
	if s.frame.checksum {
		h[4] = 1
	}
	for k := range s.tables {
		h[5+k], h[9+k] = s.tables[k].kind, s.tables[k].n
	}
	for i, rep := range s.reps {
		binary.LittleEndian.PutUint32(h[16+4*i:], uint32(rep))
	}
	binary.LittleEndian.PutUint32(h[28:], uint32(p.extents))
	binary.LittleEndian.PutUint32(h[32:], uint32(p.history))
	binary.LittleEndian.PutUint32(h[36:], uint32(len(p.b)))
	b = append(b, h[:]...)
	for k := range s.tables {
		b = append(b, s.tables[k].text[:s.tables[k].n]...)
	}
	return append(b, p.b...)
}

// parseState parses the state b of a span of size bytes.
func parseState(b []byte, size int64) (*state, error) {
	if len(b) < stateSize {
		return nil, malformed("state of %d bytes", len(b))
	}
	window := binary.LittleEndian.Uint32(b)
	if window > maxWindow || b[4] > 1 || b[13]|b[14]|b[15] != 0 {
		return nil, malformed("state with a window of %d bytes, flags %#x", window, b[4])
	}
	s := &state{
		frame:   frame{window: int(window), blockMax: int(min(window, maxBlock)), size: -1, checksum: b[4] == 1},
		extents: int(binary.LittleEndian.Uint32(b[28:])),
		history: int(binary.LittleEndian.Uint32(b[32:])),
	}
	for i := range s.reps {
		s.reps[i] = int(binary.LittleEndian.Uint32(b[16+4*i:]))
	}
	rest := b[stateSize:]
	for k := range s.tables {
		n := int(b[9+k])
		if n > len(rest) || b[5+k] > kindDescribed || n > 0 && b[5+k] < kindSingle {
			return nil, malformed("state with table %d of kind %d, %d bytes", k, b[5+k], n)
		}
		s.tables[k].set(b[5+k], rest[:n])
		rest = rest[n:]
	}
	if int64(len(rest)) != int64(binary.LittleEndian.Uint32(b[36:])) {
		return nil, malformed("state with %d bytes of history, it says %d", len(rest), binary.LittleEndian.Uint32(b[36:]))
	}
	if int64(s.history) > maxHistory*size+historyRoom || s.extents > s.history/2 || (len(rest) == 0) != (s.extents == 0) {
		return nil, malformed("history of %d bytes in %d extents for a span of %d bytes", s.history, s.extents, size)
	}
	s.packed = rest
	return s, nil
}

// past unpacks the history with d, which is idle; nil if there is none.
func (s *state) past(d *decoder) (*past, error) {
	if s.extents == 0 {
		return nil, nil //nolint:nilnil // none is no error
	}
	d.reset(bytes.NewReader(s.packed), s.history)
	for {
		err := d.step()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, malformed("history: %v", err)
		}
	}
	b := d.out.buf
	if len(b) != s.history {
		return nil, malformed("history of %d bytes, it says %d", len(b), s.history)
	}
	p := &past{extents: make([]extent, s.extents)}
	at, distance := 0, 0
	for i := range p.extents {
		skip, k := binary.Uvarint(b)
		n, l := binary.Uvarint(b[max(k, 0):])
		if k <= 0 || l <= 0 || skip > maxWindow || n > maxWindow {
			return nil, malformed("extent %d of a history", i)
		}
		b = b[k+l:]
		if distance -= int(skip); i == 0 {
			distance = int(skip)
		}
		if n == 0 || int(n) > distance || distance > s.frame.window {
			return nil, malformed("extent %d of a history: %d bytes at distance %d", i, n, distance)
		}
		p.extents[i] = extent{distance: distance, n: int(n), at: at}
		at += int(n)
		distance -= int(n)
	}
	if at != len(b) {
		return nil, malformed("extents of %d bytes, there are %d", at, len(b))
	}
	p.bytes = b
	return p, nil
}

// restore makes d, which is at the beginning of the span, go on from s.
func (s *state) restore(d *decoder, past *past) error {
	d.begin(s.frame)
	d.reps = s.reps
	d.out.past = past
	d.out.frame = -maxWindow - 1
	d.tables.reset()
	for k := range s.tables {
		r := &s.tables[k]
		if r.kind == kindNone {
			continue
		}
		text := d.block[margin : margin+int(r.n)]
		copy(text, r.text[:r.n])
		var n int
		var err error
		if k == tableHuffman {
			n, err = d.tables.makeHuffman(d.block, margin, margin+len(text))
		} else {
			n, err = d.tables.make(k, r.kind-kindPredefined, text)
		}
		if err != nil {
			return err
		}
		if n != len(text) {
			return malformed("table %d of %d bytes, it has %d", k, n, len(text))
		}
	}
	return nil
}
