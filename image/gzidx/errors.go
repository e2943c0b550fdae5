// SPDX-License-Identifier: Apache-2.0

package gzidx

import (
	"errors"
	"fmt"
	"io"
)

var (
	// ErrCorrupt is the class of errors for bytes that cannot be what was
	// written: of an index file, or of a gzip file that is being indexed.
	ErrCorrupt = errors.New("gzip index corrupt")

	// ErrChanged is the class of errors for a gzip file that is not the one
	// its index was made of.
	ErrChanged = errors.New("gzip file is not the one indexed")
)

// corruptf returns an ErrCorrupt about byte off of a file.
func corruptf(off int64, format string, args ...any) error {
	return fmt.Errorf("%w at byte %d: %s", ErrCorrupt, off, fmt.Sprintf(format, args...))
}

// A formatError says what is wrong with bytes that should be gzip.
type formatError string

func (e formatError) Error() string { return string(e) }

// Is makes the error of data that ends early an io.ErrUnexpectedEOF.
func (e formatError) Is(target error) bool { return e == errTruncated && target == io.ErrUnexpectedEOF }

const (
	errTruncated = formatError("data ends early")

	errBlockType = formatError("block of unknown type")
	errStored    = formatError("lengths of stored block contradict each other")
	errLengths   = formatError("bad code lengths")
	errCode      = formatError("bad code")
	errDistance  = formatError("match reaches back before the start")

	errMagic     = formatError("not gzip")
	errMethod    = formatError("unknown compression method")
	errFlags     = formatError("unknown flags in header")
	errHeaderCRC = formatError("CRC of header is wrong")
	errGarbage   = formatError("garbage behind the end")
)

// isFormat reports whether err says that the bytes are wrong, rather than that
// they could not be had.
func isFormat(err error) bool {
	var f formatError
	return errors.As(err, &f)
}
