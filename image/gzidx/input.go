// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	// inputSize is how much compressed data is held (bytes).
	inputSize = 64 << 10

	// padding is how many zero bytes follow the last byte of the input, so
	// that eight bytes can be loaded wherever bits are missing.
	padding = 16

	// lookback is how many bytes are kept before those that were loaded: the
	// unread bits may be theirs.
	lookback = 8
)

// An input is compressed data as bits. Of the next bits, n are in b, and those
// of in[pos:] follow; b may have more bits of these set already.
type input struct {
	r     io.Reader
	in    []byte
	pos   int   // of the first byte that is not in b
	end   int   // of the last byte that is there
	limit int   // the last pos from which eight bytes may be loaded
	at    int64 // where in the file in[0] lies
	done  bool  // r has no more

	b uint64
	n uint

	// leaving, if not nil, hears of bytes about to be forgotten, and where in
	// the file they lie.
	leaving func(p []byte, off int64)
}

// reset makes i the bits of r, whose first byte lies at byte off of the file.
func (i *input) reset(r io.Reader, off int64) {
	if i.in == nil {
		i.in = make([]byte, inputSize+padding)
	}
	*i = input{r: r, in: i.in, at: off, limit: -1, leaving: i.leaving}
}

// bitPos returns where in the file the next bit lies.
func (i *input) bitPos() int64 { return (i.at+int64(i.pos))*8 - int64(i.n) }

// more reads more of the input, and returns errTruncated if there is
// none.
func (i *input) more() error {
	if i.done {
		return errTruncated
	}
	if drop := min(i.pos, i.end) - lookback; drop > inputSize/2 {
		if i.leaving != nil {
			i.leaving(i.in[:drop], i.at)
		}
		copy(i.in, i.in[drop:i.end])
		i.pos, i.end, i.at = i.pos-drop, i.end-drop, i.at+int64(drop)
	}
	n, err := readSome(i.r, i.in[i.end:inputSize])
	i.end += n
	i.limit = i.end - 8
	switch {
	case errors.Is(err, io.EOF):
		i.done = true
		clear(i.in[i.end : i.end+padding])
		i.limit = i.end + padding - 8
	case err != nil:
		return err
	}
	return nil
}

// readSome reads at least one byte, unless there is an error.
func readSome(r io.Reader, p []byte) (int, error) {
	for range 100 {
		n, err := r.Read(p)
		if n > 0 && !errors.Is(err, io.EOF) {
			return n, nil // an error comes again
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// want has n bytes from pos on loaded, or all that there are. n is at most
// inputSize/4.
func (i *input) want(n int) error {
	for i.end-i.pos < n && !i.done {
		if err := i.more(); err != nil {
			return err
		}
	}
	return nil
}

// overrun reports whether bits were read that are not there.
func (i *input) overrun() bool { return i.done && i.pos-int(i.n>>3) > i.end }

// refill makes at least 56 bits of b known. There must be input for it.
func (i *input) refill() error {
	if i.pos > i.limit {
		return errTruncated
	}
	i.b |= binary.LittleEndian.Uint64(i.in[i.pos:]) << (i.n & 63)
	i.pos += int((63 - i.n) >> 3)
	i.n |= 56
	return nil
}

// take consumes n of the known bits and returns them.
func (i *input) take(n uint) int {
	v := i.b & (1<<n - 1)
	i.b >>= n
	i.n -= n
	return int(v)
}

// align drops bits up to the next whole byte and forgets those that are known.
func (i *input) align() error {
	i.pos -= int(i.n >> 3)
	i.b, i.n = 0, 0
	if i.pos > i.end {
		return errTruncated
	}
	return nil
}

// byte returns the next byte of an aligned input, or io.EOF.
func (i *input) byte() (byte, error) {
	if i.pos == i.end {
		if err := i.want(1); err != nil {
			return 0, err
		}
		if i.pos == i.end {
			return 0, io.EOF
		}
	}
	i.pos++
	return i.in[i.pos-1], nil
}

// skip skips bits, at most 7.
func (i *input) skip(bits uint8) error {
	if err := i.want(8); err != nil {
		return err
	}
	if err := i.refill(); err != nil {
		return err
	}
	i.take(uint(bits))
	return nil
}
