// SPDX-License-Identifier: Apache-2.0

// Package erofs formats, reads and edits EROFS file systems without
// compression on a [backend.Writer], in user space: no root, no mount, no
// other program.
//
// The one thing to know: EROFS has no free space to manage and nothing in it
// is meant to change, but the layers of a disk may replace any sector. An [FS]
// therefore appends. The content of files goes to the device as it comes,
// behind what the superblock counts as used; metadata that is new follows it
// when [FS.Sync] is called. A file that was there keeps its inode in its
// place, where it is overwritten, and so does a directory, whose entries go
// behind. Only an inode that no longer fits is written anew, with all the
// directories that name it. A layer has the size of what it changed.
//
// Until Sync, what a layer makes or changes is held in memory; what it leaves
// alone is read when it is needed and forgotten.
//
// What is written is a pure function of the calls made: there are no clocks
// and no randomness.
//
// Everything read from the device is checked before use: a [CorruptError]
// names the structure, the place and the field. Compressed files and other
// things that EROFS can do and images of layers have no use for are refused
// with errors.ErrUnsupported.
package erofs

import (
	"errors"
	"fmt"
)

// ErrCorrupt reports that a file system is damaged. The error behind it is a
// [*CorruptError].
var ErrCorrupt = errors.New("corrupt file system")

// A CorruptError says what of a file system is wrong.
type CorruptError struct {
	Structure string // such as "inode 36"
	Off       int64  // byte offset on the device of the structure
	Field     string // such as i_size
	Reason    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt file system: %s at byte %d: %s: %s", e.Structure, e.Off, e.Field, e.Reason)
}

// Is makes every CorruptError an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corrupt(structure string, off int64, field, format string, args ...any) error {
	return &CorruptError{Structure: structure, Off: off, Field: field, Reason: fmt.Sprintf(format, args...)}
}
