// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// An index is what is known of where the blocks of a file start: all of it, or
// of a long one only the end, until a read needs more. So the first byte of a
// 10 GiB image does not wait for 10 MB of index, and the memory of an image
// that is hardly read is small.
//
// The end is believed before the CRC of the whole vouches for it, which is safe
// because a block in a wrong place fails its own CRC. Where the two contradict
// each other, the index cannot be used.
type index struct {
	h     header
	known atomic.Pointer[table]
	turn  chan struct{} // holds one token while somebody reads the whole index
	memo  *sync.Map     // where readers to come find it; nil if there are none
}

const (
	// wholeIndex is how long an index may be, in bytes, to be read at once: 1
	// MiB is that of 1 GiB in blocks of 4 KiB.
	wholeIndex = 1 << 20

	// indexEnd is what is read of a longer one, in bytes: the entries of 256
	// MiB in blocks of 4 KiB, where a layer has its metadata.
	indexEnd = 256 << 10
)

// sharedIndex returns the index that h tells of, from memo if it is there. What h
// says includes the CRC of the index.
func sharedIndex(ctx context.Context, src fetcher.Blob, h header, memo *sync.Map) (*index, error) {
	if memo == nil {
		return openIndex(ctx, src, h)
	}
	if v, ok := memo.Load(h); ok {
		return v.(*index), nil //nolint:errcheck // nobody else has such keys
	}
	x, err := openIndex(ctx, src, h)
	if err != nil {
		return nil, err
	}
	x.memo = memo
	v, _ := memo.LoadOrStore(h, x)
	return v.(*index), nil //nolint:errcheck // as above
}

// openIndex reads the index that h tells of, or the end of it.
func openIndex(ctx context.Context, src fetcher.Blob, h header) (*index, error) {
	x := &index{h: h, turn: make(chan struct{}, 1)}
	var first int64
	if h.blocks > wholeIndex/crcSize && h.checksums && h.flags&flagDigest != 0 {
		first = int64(h.blocks) - indexEnd/crcSize
	}
	t, err := readTable(ctx, src, h, first)
	x.known.Store(t)
	return x, err
}

// offset returns where block i starts; the block after the last starts where
// the last ends. Block i, or one before it, must have been reached.
func (x *index) offset(i int64) int64 { return x.known.Load().offset(i) }

// reach sees to it that the blocks of src from i on are known.
func (x *index) reach(ctx context.Context, src fetcher.Blob, i int64) error {
	if i >= x.known.Load().first {
		return nil
	}
	select {
	case x.turn <- struct{}{}:
		defer func() { <-x.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if i >= x.known.Load().first {
		return nil
	}
	t, err := readTable(ctx, src, x.h, 0)
	if err == nil {
		err = x.replace(t)
	}
	if errors.Is(err, ErrCorrupt) && x.memo != nil {
		x.memo.CompareAndDelete(x.h, x)
	}
	return err
}

// replace makes t what is known. Reads are under way that have seen what is
// known now: nothing of it may change.
func (x *index) replace(t *table) error {
	old := x.known.Load()
	for i := range int64(len(old.deltas)) {
		if i += old.first; t.offset(i) != old.offset(i) {
			return corruptf(int64(x.h.indexOffset)+i*crcSize, "block %d starts at byte %d, and at %d when the end of the index was read",
				i, t.offset(i), old.offset(i))
		}
	}
	x.known.Store(t)
	return nil
}

// A table knows where each of the blocks from first on starts. It is resident
// for as long as the image is, so it is kept small: one offset in full per group
// of blocks, and 16 bits per block for its distance from there. At 4 KiB blocks
// that is 2.5 bytes a block, 6.6 MB for a 10 GiB image, where plain 64-bit
// offsets take 21 MB and the stored 32-bit lengths, which cannot be searched,
// 10.5 MB. It holds no pointers, and a lookup is two loads and an addition.
type table struct {
	first  int64    // block
	shift  uint     // a group is 1<<shift blocks
	bases  []int64  // start of each group, bytes
	deltas []uint16 // start of each block, bytes from its group's start
	end    int64    // where the next block starts: the end of the last
}

// newTable returns the table of blocks that follow each other from byte start
// on, each at most maxStored bytes long.
func newTable(first, start int64, maxStored int) *table {
	t := &table{first: first, end: start}
	for maxStored<<(t.shift+1)-maxStored <= 1<<16-1 {
		t.shift++
	}
	return t
}

// grow makes room for n more blocks.
func (t *table) grow(n int) {
	t.bases = slices.Grow(t.bases, n>>t.shift+1)
	t.deltas = slices.Grow(t.deltas, n)
}

// add appends a block of n bytes.
func (t *table) add(n int) {
	if len(t.deltas)&(1<<t.shift-1) == 0 {
		t.bases = append(t.bases, t.end)
	}
	t.deltas = append(t.deltas, uint16(t.end-t.bases[len(t.bases)-1]))
	t.end += int64(n)
}

// offset returns where block i starts; the block after the last starts where
// the last ends.
func (t *table) offset(i int64) int64 {
	if i -= t.first; i == int64(len(t.deltas)) {
		return t.end
	}
	return t.bases[i>>t.shift] + int64(t.deltas[i])
}

// move adds n bytes to where every block starts.
func (t *table) move(n int64) {
	for i := range t.bases {
		t.bases[i] += n
	}
	t.end += n
}
