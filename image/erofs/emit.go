// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A part is what is written of a file in one place.
type part struct {
	off  int64
	n    *node
	data bool // the blocks of its content, or else the inode and what follows
}

// emit writes what has been arranged, from the beginning of the device to its
// end.
func (f *FS) emit(ctx context.Context, changed []*node) error {
	var parts []part
	for _, n := range changed {
		parts = append(parts, part{off: n.draft.plan.off, n: n})
		if n.draft.plan.blocks > 0 {
			parts = append(parts, part{off: int64(n.draft.data) << blockBits, n: n, data: true})
		}
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.off, b.off) })
	p := patcher{ctx: ctx, dev: f.dev, old: f.m.sb.blocks << blockBits}
	for _, x := range parts {
		put := f.putInode
		if x.data {
			put = f.putBlocks
		}
		if err := put(&p, x); err != nil {
			return err
		}
	}
	return p.flush()
}

// putInode writes an inode and what follows it.
func (f *FS) putInode(p *patcher, x part) error {
	d := x.n.draft
	raw := make([]byte, d.head()-int64(len(d.xattrs)), d.head()+d.gap()+d.behind())
	d.put(raw, f.nid(x.n))
	raw = append(raw, d.xattrs...)
	raw = append(raw, make([]byte, d.gap())...)
	switch {
	case d.loaded && d.layout == layoutInline:
		k := len(d.plan.counts) - 1
		raw = appendDirents(raw, f.dirents(x.n, d.plan.names[len(d.plan.names)-d.plan.counts[k]:]))
	case !d.loaded && d.plan.blocks == 0:
		raw = append(raw, d.body...)
	}
	return p.put(x.off, raw)
}

// putBlocks writes content that goes into blocks.
func (f *FS) putBlocks(p *patcher, x part) error {
	d := x.n.draft
	if !d.loaded {
		return p.put(x.off, d.body)
	}
	names := d.plan.names
	for i := int64(0); i<<blockBits < d.plan.blocks; i++ {
		k := d.plan.counts[i]
		if err := p.put(x.off+i<<blockBits, appendDirents(nil, f.dirents(x.n, names[:k]))); err != nil {
			return err
		}
		names = names[k:]
	}
	return nil
}

// A patcher writes pieces that follow one another and need not be whole
// sectors.
type patcher struct {
	ctx context.Context // of all writes
	dev backend.Writer
	old int64 // what lies before it is kept around the pieces, what lies behind is zero
	off int64 // of buf, whole sectors
	buf []byte
}

const (
	sectorMask = backend.SectorSize - 1
	patchBytes = 1 << 20 // of changes that are written at once
)

// put writes b at off, which lies behind what was put before.
func (p *patcher) put(off int64, b []byte) error {
	first, end := off&^sectorMask, align(off+int64(len(b)), backend.SectorSize)
	have := p.off + int64(len(p.buf))
	if near := first <= have || first >= p.old && first-have < blockSize; !near || len(p.buf) >= patchBytes {
		if err := p.cut(first); err != nil {
			return err
		}
		have = p.off + int64(len(p.buf))
	}
	if end > have {
		grown := make([]byte, end-have)
		if have < p.old {
			if err := readFull(p.ctx, p.dev, grown, have); err != nil {
				return err
			}
		}
		p.buf = append(p.buf, grown...)
	}
	copy(p.buf[off-p.off:], b)
	return nil
}

// cut writes what is complete, so that the buffer begins at first or before
// it.
func (p *patcher) cut(first int64) error {
	have := p.off + int64(len(p.buf))
	keep := max(have-first, 0)
	last := slices.Clone(p.buf[int64(len(p.buf))-keep:])
	p.buf = p.buf[:int64(len(p.buf))-keep]
	if err := p.flush(); err != nil {
		return err
	}
	p.off, p.buf = first, append(p.buf, last...)
	return nil
}

func (p *patcher) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	if _, err := p.dev.WriteAt(p.ctx, p.buf, p.off); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p.buf), p.off, err)
	}
	p.buf = p.buf[:0]
	return nil
}
