// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A piece is a part of a file that lies together.
type piece struct {
	off, n int64 // bytes on the device
	hole   bool
}

// piece returns where the content of n from byte off on is. off lies within
// the file.
func (m *image) piece(ctx context.Context, n *inode, off int64) (piece, error) {
	switch n.layout {
	case layoutChunks:
		return m.chunk(ctx, n, off)
	case layoutInline:
		full := n.size - n.tail()
		if off >= full {
			return piece{off: n.off + n.head() + off - full, n: n.size - off}, nil
		}
		return piece{off: int64(n.data)<<blockBits + off, n: full - off}, nil
	}
	return piece{off: int64(n.data)<<blockBits + off, n: n.size - off}, nil
}

// chunk returns where the rest of the chunk that off lies in is.
func (m *image) chunk(ctx context.Context, n *inode, off int64) (piece, error) {
	table, unit := n.chunkTable()
	size := n.chunkSize()
	at := table + off/size*unit
	p, err := m.read(ctx, at, unit)
	if err != nil {
		return piece{}, fmt.Errorf("read chunks of inode %d: %w", m.sb.nid(n.off), err)
	}
	if unit == 8 {
		if dev := le.Uint16(p[2:]); dev != 0 {
			return piece{}, corrupt(fmt.Sprintf("chunk of inode %d", m.sb.nid(n.off)), at, "device_id", "%d", dev)
		}
		p = p[4:]
	}
	rest := min(size-off%size, n.size-off)
	no := le.Uint32(p)
	if no == chunkHole {
		return piece{n: rest, hole: true}, nil
	}
	r := piece{off: int64(no)<<blockBits + off%size, n: rest}
	if end := m.sb.end(); r.off > end || align(r.n, blockSize) > end-r.off&^(blockSize-1) {
		return piece{}, corrupt(fmt.Sprintf("chunk of inode %d", m.sb.nid(n.off)), at, "blkaddr", "%d of %d", no, m.sb.blocks)
	}
	return r, nil
}

// readAt reads the content of n under the io.ReaderAt contract.
func (m *image) readAt(ctx context.Context, n *inode, p []byte, off int64) (int, error) {
	if off < 0 || off >= n.size {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(want), n.size-off)]
	for done := 0; done < len(p); {
		r, err := m.piece(ctx, n, off+int64(done))
		if err != nil {
			return done, err
		}
		part := p[done:][:min(int64(len(p)-done), r.n)]
		if r.hole {
			clear(part)
		} else if err := m.readBytes(ctx, part, r.off); err != nil {
			return done, err
		}
		done += len(part)
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readBytes fills p from byte offset off of the device, which reads whole
// sectors only.
func (m *image) readBytes(ctx context.Context, p []byte, off int64) error {
	const mask = backend.SectorSize - 1
	if whole := len(p) &^ mask; off&mask == 0 && whole > 0 {
		if err := readFull(ctx, m.dev, p[:whole], off); err != nil {
			return err
		}
		p, off = p[whole:], off+int64(whole)
	}
	sector := make([]byte, backend.SectorSize)
	for len(p) > 0 {
		if err := readFull(ctx, m.dev, sector, off&^mask); err != nil {
			return err
		}
		k := copy(p, sector[off&mask:])
		p, off = p[k:], off+int64(k)
		if whole := len(p) &^ mask; whole > 0 {
			return m.readBytes(ctx, p, off)
		}
	}
	return nil
}

// maxExtents bounds the pieces of a file that are told at once.
const maxExtents = 1 << 20

// extents returns the blocks that hold bytes [off, off+n) of the file in.
func (m *image) extents(ctx context.Context, in *inode, off, n int64) ([]vfs.Extent, error) {
	off = max(off, 0)
	if off >= in.size || n <= 0 {
		return nil, nil
	}
	end := off + min(n, in.size-off)
	var all []vfs.Extent
	for off < end {
		r, err := m.piece(ctx, in, off)
		if err != nil {
			return nil, err
		}
		r.n = min(r.n, end-off)
		off += r.n
		if r.hole {
			continue
		}
		start := r.off &^ (blockSize - 1)
		e := vfs.Extent{Off: start, Len: align(r.off+r.n, blockSize) - start}
		if k := len(all); k > 0 && all[k-1].Off+all[k-1].Len == e.Off && e.Len < math.MaxInt64-all[k-1].Len {
			all[k-1].Len += e.Len
			continue
		}
		if len(all) == maxExtents {
			return nil, fmt.Errorf("inode %d: %w: more than %d pieces", m.sb.nid(in.off), ErrCorrupt, maxExtents)
		}
		all = append(all, e)
	}
	return all, nil
}
