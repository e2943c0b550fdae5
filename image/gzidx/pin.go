// SPDX-License-Identifier: Apache-2.0

package gzidx

// A pin is a block boundary that is, or may become, a point. It holds on to
// what making the point needs and the stream passes by: the window before it,
// and the compressed data behind it that may refer to the window.
type pin struct {
	de, bit int64  // where it lies: uncompressed bytes, compressed bits
	at, low int    // where it and the start of its history lie in the output
	window  []byte // once they are to leave it
	data    []byte // compressed, from the byte that holds bit on
	sum     summer // of the span before it
}

// maxPinned is how much compressed data is kept of one (bytes): 32 KiB take 60
// KiB if every byte has a code of 15 bits.
const maxPinned = 80 << 10

// leave takes what p needs of bytes b of the stream from off on.
func (p *pin) leave(b []byte, off int64) {
	next := p.bit/8 + int64(len(p.data))
	skip := next - off
	if skip < 0 || skip >= int64(len(b)) || len(p.data) >= maxPinned {
		return
	}
	b = b[skip:]
	p.data = append(p.data, b[:min(len(b), maxPinned-len(p.data))]...)
}

// keepWindow takes the window of p from out.
func (p *pin) keepWindow(out []byte) {
	if p.window != nil {
		return
	}
	p.window = make([]byte, windowSize)
	from := max(p.low, p.at-windowSize)
	copy(p.window[windowSize-(p.at-from):], out[from:p.at])
}
