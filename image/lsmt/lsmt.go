// SPDX-License-Identifier: Apache-2.0

// Package lsmt reads and writes the LSMT layer format: one layer of a block
// image, a sorted list of which sectors the layer changes and where in its
// file their bytes are.
//
// A sealed layer is immutable: [Open] it from any [fetcher.Blob], [Merge] a
// pile of them into one [Stack]. A writable layer is a data file and an index
// file: [Create] or [OpenWritable] it, put it over a stack with [Overlay],
// and turn it into a sealed layer with [Writable.Seal] (in place) or [Commit]
// (compacted, to any io.Writer). [Build] makes a sealed layer in one pass.
//
// The one thing to know: a sector that a layer does not map shows the layer
// below, a sector that it maps as zeroed hides the layer below. The two are
// never the same, although both read as zeros at the bottom.
//
// # Sealed layer
//
//	0             header, 4096 bytes
//	4096          data sectors; a commit's are in the order of the index
//	index_offset  index records, 16 bytes each, sorted, not overlapping
//	size-4096     trailer, 4096 bytes: the truth about the index
//
// # Writable layer
//
//	append  data file   header, then sectors in the order they were written
//	        index file  header, then a record per write, the last one wins
//	sparse  data file   header, then the volume itself, holes where unwritten
//	        index file  empty
//
// Everything is little-endian. The layouts of the header and of a record are
// in header.go and record.go. They are durable: other implementations read
// these files, and write the ones read here.
package lsmt

import (
	"errors"
	"fmt"
)

// SectorSize is the unit, in bytes, of every offset and length in an index.
const SectorSize = 512

// MaxLayers is how many sealed layers a stack may have: the source of a
// merged record is an 8-bit number, and one is left for a writable layer.
const MaxLayers = 255

const (
	// maxVirtualSize (64 TiB) bounds what a layer may claim to hold.
	maxVirtualSize = 64 << 40

	// maxMerged is the limit of a merged index and of a writable one in
	// records, the same as the reference's: 2 GiB of memory.
	maxMerged = 128_000_000

	// maxSealed is how many records, padding included, the reference accepts
	// in a sealed layer, so the most that a writer may put there.
	maxSealed = 1_000_000

	// maxLoaded is how many records a reader accepts in a sealed layer.
	// Earlier versions of the reference had no limit; 16 Mi records are
	// 256 MiB of memory, of which a hostile layer must ship every byte.
	maxLoaded = 16 << 20
)

// ErrCorrupt reports that a file is not a well-formed layer. The error behind
// it is a [*CorruptError].
var ErrCorrupt = errors.New("corrupt layer")

// A CorruptError says which field of a layer file is wrong.
type CorruptError struct {
	Off    int64  // byte offset in the file
	Field  string // name in the format, such as index_offset
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt layer: %s at byte %d: %s", e.Field, e.Off, e.Reason)
}

// Is makes every CorruptError an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corrupt(off int64, field, format string, args ...any) error {
	return &CorruptError{Off: off, Field: field, Reason: fmt.Sprintf(format, args...)}
}
