// SPDX-License-Identifier: Apache-2.0

package tarblob

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
)

const (
	blockLen = 512          // bytes, the unit of tar
	headers  = 3 * blockLen // before a payload that was wrapped
	trailer  = 2 * blockLen // zero blocks that end a tar
)

// WrappedSize returns the length of what Wrap makes of size bytes.
func WrappedSize(size int64) int64 { return headers + size + padding(size) + trailer }

// padding returns the zeros that fill the last block of n bytes.
func padding(n int64) int64 { return -n & (blockLen - 1) }

// Wrap returns a tar of one entry, "overlaybd.commit", of the size bytes that
// payload must hold: a shorter or longer one fails. The bytes are those of
// the reference implementation, whose numbers are padded with spaces and
// whose entry leaves its size to the pax header.
func Wrap(payload io.Reader, size int64) io.Reader {
	return io.MultiReader(
		bytes.NewReader(head(size)),
		&exactReader{r: payload, size: size, rest: size},
		io.LimitReader(zeros{}, padding(size)+trailer))
}

// PayloadOffset is where in a wrapped blob the payload starts, in bytes.
const PayloadOffset = headers

// WrapInPlace makes f what [Wrap] returns, for a payload of size bytes that
// was written at PayloadOffset, and after which f ends.
func WrapInPlace(f io.WriterAt, size int64) error {
	if _, err := f.WriteAt(make([]byte, padding(size)+trailer), headers+size); err != nil {
		return err
	}
	_, err := f.WriteAt(head(size), 0)
	return err
}

// head returns the pax header, its body and the header of the entry.
func head(size int64) []byte {
	record := paxRecord("size", strconv.FormatInt(size, 10))
	b := make([]byte, headers)
	pax, body, entry := b[:blockLen], b[blockLen:2*blockLen], b[2*blockLen:]

	copy(pax, "overlaybd.pax")
	copy(pax[124:], octal(len(record), 12))
	seal(pax, 'x')
	copy(body, record)

	copy(entry, "overlaybd.commit")
	copy(entry[100:], octal(0o100644, 8)) // mode
	copy(entry[108:], octal(0, 8))        // uid
	copy(entry[116:], octal(0, 8))        // gid
	copy(entry[124:], octal(0, 12))       // size: the pax header's
	copy(entry[136:], octal(0, 12))       // mtime
	copy(entry[265:], "root")             // uname
	copy(entry[297:], "root")             // gname
	seal(entry, '0')
	return b
}

// seal sets the type, magic and checksum of the header h.
func seal(h []byte, typeflag byte) {
	h[156] = typeflag
	copy(h[257:], "ustar\x0000")
	copy(h[148:156], "        ") // counts as spaces
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], octal(sum, 8))
}

// octal returns v as the reference writes it into a field of width bytes:
// padded with spaces, ending in a space, and in fields of 8 a zero byte.
func octal(v, width int) string {
	if width == 8 {
		return fmt.Sprintf("%6o \x00", v)
	}
	return fmt.Sprintf("%*o ", width-1, v)
}

// paxRecord returns "<len> key=value\n", whose len counts its own digits.
func paxRecord(key, value string) string {
	rest := fmt.Sprintf(" %s=%s\n", key, value)
	n := len(rest) + 1
	for len(strconv.Itoa(n))+len(rest) != n {
		n++
	}
	return strconv.Itoa(n) + rest
}

// exactReader reads size bytes of r and fails where r holds less or more.
type exactReader struct {
	r          io.Reader
	size, rest int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.rest <= 0 {
		return 0, e.end()
	}
	p = p[:min(int64(len(p)), e.rest)]
	n, err := e.r.Read(p)
	e.rest -= int64(n)
	switch {
	case err != io.EOF:
		return n, err
	case e.rest > 0:
		return n, fmt.Errorf("wrap payload: %d bytes are missing of %d: %w", e.rest, e.size, io.ErrUnexpectedEOF)
	}
	return n, nil
}

// end expects the end of r.
func (e *exactReader) end() error {
	var one [1]byte
	if n, err := io.ReadFull(e.r, one[:]); n == 0 && e.size >= 0 {
		return err
	}
	return fmt.Errorf("wrap payload: it is longer than the %d bytes announced", e.size)
}

// zeros reads zero bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
