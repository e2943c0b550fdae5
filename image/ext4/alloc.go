// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"context"
	"fmt"
	"syscall"
)

const (
	// decentRun is the length in blocks (32 MiB of 4 KiB) from which a free
	// run is taken however much more is wanted.
	decentRun = 8192

	// metaWindow is how many blocks are set aside at a time for directories
	// and the like (1 MiB of 4 KiB), so that what a lazy start reads to look
	// names up lies together.
	metaWindow = 256
)

// blockBitmap returns the block bitmap of group g, made up if it was never
// written.
func (f *FS) blockBitmap(ctx context.Context, g int) (*block, error) {
	d := &f.groups[g]
	if d.flags&groupBlockUninit == 0 {
		return f.cache.get(ctx, d.blockBitmap)
	}
	b := f.cache.zero(d.blockBitmap)
	f.initBlockBitmap(g, b.data)
	d.flags &^= groupBlockUninit
	d.dirty = true
	return b, nil
}

// initBlockBitmap marks the metadata in group g and what lies past its end.
func (f *FS) initBlockBitmap(g int, m bitmap) {
	start, n := f.sb.groupStart(g), f.sb.groupBlocks(g)
	for _, r := range f.system.within(run{start, n}) {
		m.put(true, r.start-start, r.n)
	}
	m.put(true, n, uint64(8*len(m))-n)
}

// placeCursor makes the search for free blocks begin after the last block in
// use, so that what a layer adds lies together and leaves what its parents
// had alone.
func (f *FS) placeCursor(ctx context.Context) error {
	for g := len(f.groups) - 1; g >= 0; g-- {
		d := &f.groups[g]
		start, n := f.sb.groupStart(g), f.sb.groupBlocks(g)
		var system uint64
		for _, r := range f.system.within(run{start, n}) {
			system += r.n
		}
		if d.flags&groupBlockUninit != 0 || uint64(d.freeBlocks)+system >= n {
			continue
		}
		b, err := f.cache.get(ctx, d.blockBitmap)
		if err != nil {
			return err
		}
		for n > 0 && !bitmap(b.data).isSet(n-1) {
			n--
		}
		f.data = start + n
		return nil
	}
	return nil
}

// findRun returns a free run of up to want blocks: the first behind the data
// cursor that has them all or is decent, else the longest class that is left.
func (f *FS) findRun(ctx context.Context, want uint64) (run, error) {
	for need := min(max(want, 1), decentRun); need > 0; need /= 2 {
		r, err := f.searchRun(ctx, need, want)
		if err != nil || r.n > 0 {
			return r, err
		}
	}
	return run{}, fmt.Errorf("allocate blocks: %w", syscall.ENOSPC)
}

// searchRun goes once round the volume for a free run of at least need
// blocks, and returns at most want of it.
func (f *FS) searchRun(ctx context.Context, need, want uint64) (run, error) {
	if f.data <= f.sb.first || f.data >= f.sb.blocks {
		f.data = f.sb.first
	}
	first := int((f.data - f.sb.first) / f.sb.perGroup)
	for i := range len(f.groups) + 1 { // the first group once more, from its start
		g := (first + i) % len(f.groups)
		if uint64(f.groups[g].freeBlocks) < need {
			continue
		}
		b, err := f.blockBitmap(ctx, g)
		if err != nil {
			return run{}, err
		}
		start := f.sb.groupStart(g)
		from := uint64(0)
		if i == 0 {
			from = f.data - start
		}
		if at, n := longEnough(b.data, from, f.sb.groupBlocks(g), need); n > 0 {
			return run{start + at, min(n, want)}, nil
		}
	}
	return run{}, nil
}

// longEnough returns the first run of at least need clear bits in
// [from, limit); n is 0 if there is none.
func longEnough(m bitmap, from, limit, need uint64) (at, n uint64) {
	for from < limit {
		at = m.next(false, from, limit)
		from = m.next(true, at, limit)
		if from-at >= need {
			return at, from - at
		}
	}
	return 0, 0
}

// allocData marks a run of up to want blocks as used.
func (f *FS) allocData(ctx context.Context, want uint64) (run, error) {
	r, err := f.findRun(ctx, want)
	if err != nil {
		return run{}, err
	}
	if r.start < f.meta.end() && f.meta.start < r.end() { // the volume is nearly full
		f.meta = run{}
	}
	f.data = r.end()
	return r, f.mark(ctx, r, true)
}

// allocMeta marks a block for a directory or the like as used, and returns it
// filled with zeroes.
func (f *FS) allocMeta(ctx context.Context) (*block, error) {
	if f.meta.n == 0 {
		r, err := f.findRun(ctx, metaWindow)
		if err != nil {
			return nil, err
		}
		f.meta, f.data = r, r.end()
	}
	no := f.meta.start
	f.meta = run{no + 1, f.meta.n - 1}
	if err := f.mark(ctx, run{no, 1}, true); err != nil {
		return nil, err
	}
	return f.cache.zero(no), nil
}

// freeRun gives r back.
func (f *FS) freeRun(ctx context.Context, r run) error {
	f.cache.forget(r)
	return f.mark(ctx, r, false)
}

// mark sets or clears the bits of r, which may span groups and must all have
// the other value.
func (f *FS) mark(ctx context.Context, r run, used bool) error {
	for r.n > 0 {
		g := int((r.start - f.sb.first) / f.sb.perGroup)
		at := r.start - f.sb.groupStart(g)
		n := min(r.n, f.sb.groupBlocks(g)-at)
		if err := f.markGroup(ctx, g, at, n, used); err != nil {
			return err
		}
		r = run{r.start + n, r.n - n}
	}
	return nil
}

func (f *FS) markGroup(ctx context.Context, g int, at, n uint64, used bool) error {
	d := &f.groups[g]
	b, err := f.blockBitmap(ctx, g)
	if err != nil {
		return err
	}
	free := uint64(d.freeBlocks)
	switch {
	case !bitmap(b.data).all(!used, at, n):
		return corrupt(fmt.Sprintf("block bitmap %d", g), f.sb.off(d.blockBitmap), "bit", "blocks %d to %d are not all marked %s",
			f.sb.groupStart(g)+at, f.sb.groupStart(g)+at+n-1, map[bool]string{true: "free", false: "used"}[used])
	case used && free < n || !used && free+n > f.sb.groupBlocks(g):
		return corrupt(fmt.Sprintf("group descriptor %d", g), f.sb.off(f.sb.first+1), "bg_free_blocks_count", "%d disagrees with the bitmap", free)
	}
	bitmap(b.data).put(used, at, n)
	b.dirty, d.dirty = true, true
	if used {
		d.freeBlocks -= uint32(n)
	} else {
		d.freeBlocks += uint32(n)
	}
	return nil
}
