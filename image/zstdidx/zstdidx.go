// SPDX-License-Identifier: Apache-2.0

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
