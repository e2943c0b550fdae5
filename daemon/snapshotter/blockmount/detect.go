// SPDX-License-Identifier: Apache-2.0

package blockmount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Bytes of a superblock by which a file system is known. All offsets are from
// the start of the device, all integers little-endian.
var magics = []struct {
	off   int
	bytes []byte
	fs    string
}{
	{1024, []byte{0xe2, 0xe1, 0xf5, 0xe0}, "erofs"}, // wins over whatever a label says
	{1080, []byte{0x53, 0xef}, "ext4"},              // ext2 and ext3 too: the ext4 driver mounts them
	{1024, []byte{0x10, 0x20, 0xf5, 0xf2}, "f2fs"},
	{0, []byte("XFSB"), "xfs"},
	{3, []byte("NTFS    "), "ntfs"},
	{64<<10 + 64, []byte("_BHRfS_M"), "btrfs"},
}

// A superblock is what the first bytes of a device tell of its file system.
type superblock struct {
	fs      string // "" if unknown
	journal bool   // ext4: there is a journal
	dirty   bool   // ext4: the journal must be replayed
}

// ErrDirty reports a file system that was not unmounted and cannot be
// repaired because the device is read-only.
var ErrDirty = errors.New("file system needs its journal replayed, which a read-only device does not allow")

// Detect returns the type of the file system on the device or file path, and
// "" where it knows none.
func Detect(path string) (string, error) {
	sb, err := readSuperblock(path)
	return sb.fs, err
}

func readSuperblock(path string) (superblock, error) {
	f, err := os.Open(path)
	if err != nil {
		return superblock{}, err
	}
	defer f.Close()
	sb, err := parseSuperblock(f)
	if err != nil {
		return superblock{}, fmt.Errorf("read superblock of %s: %w", path, err)
	}
	return sb, nil
}

// parseSuperblock reads the first page and, only where that tells nothing, one
// at 64 KiB: each may be a network round trip.
func parseSuperblock(r io.ReaderAt) (superblock, error) {
	const page = 4096
	for _, start := range []int{0, 64 << 10} {
		var buf [page]byte
		n, err := r.ReadAt(buf[:], int64(start))
		if err != nil && !errors.Is(err, io.EOF) {
			return superblock{}, err
		}
		if fs := match(buf[:n], start); fs != "" {
			return inspect(fs, buf[:n]), nil
		}
	}
	return superblock{}, nil
}

func match(page []byte, start int) string {
	i := slices.IndexFunc(magics, func(m struct {
		off   int
		bytes []byte
		fs    string
	},
	) bool {
		off := m.off - start
		return off >= 0 && off+len(m.bytes) <= len(page) && bytes.Equal(page[off:off+len(m.bytes)], m.bytes)
	})
	if i < 0 {
		return ""
	}
	return magics[i].fs
}

func inspect(fs string, page []byte) superblock {
	sb := superblock{fs: fs}
	// ext4's feature words: compatible at 1024+0x5c (0x4: has a journal),
	// incompatible at 1024+0x60 (0x4: journal needs recovery).
	if fs == "ext4" && len(page) >= 1024+0x64 {
		sb.journal = binary.LittleEndian.Uint32(page[1024+0x5c:])&4 != 0
		sb.dirty = binary.LittleEndian.Uint32(page[1024+0x60:])&4 != 0
	}
	return sb
}
