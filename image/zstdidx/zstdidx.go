// SPDX-License-Identifier: Apache-2.0

// Package zstdidx reads zstd files (RFC 8878) at random, by an index that is
// made while a file is decompressed once. A [Reader] decompresses a stream and
// makes the index; [Open] returns the content of a file by it, as a
// [fetcher.Blob].
//
// The one thing to know: content is decoded in spans, of 1 to 16 MiB as a rule,
// and one byte of a span costs as much as all before it there. It is handed out in
// pieces of 64 KiB, each as soon as it has come out with the right checksum, so
// that a file that changed under its index is an error, and never wrong content.
//
// Where a span begins between two blocks of a frame, the index holds what a
// decoder knows there: offsets and tables that the span uses, and those bytes
// before it that its matches take. docs/zstd-index.md has the format and its
// limits, and how the places are chosen.
//
// The decoder is the package's own, because none is known that can begin inside
// a frame. Where it is stricter than others, it refuses a file when the index
// is made.
package zstdidx

import (
	"errors"
	"fmt"
)

// Errors that callers tell apart.
var (
	// ErrCorrupt is the class of errors for an index, or a zstd stream that an
	// index is to be made of, that cannot be what was written.
	ErrCorrupt = errors.New("zstd stream or index corrupt")

	// ErrChanged says that the zstd file is not the one its index was made of.
	ErrChanged = errors.New("zstd file is not what its index was made of")
)

// malformed returns an error about bytes that are no zstd stream.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
