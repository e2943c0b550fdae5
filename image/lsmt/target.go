// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"
	"fmt"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// The tags of a layer with a target. Durable.
const (
	fileTag   = 0 // sectors of the layer file
	targetTag = 1 // sectors of the target
)

// OpenWithTarget opens a sealed layer some of whose sectors lie in another
// blob: its target, such as the uncompressed tar that the layer was made of.
// Nothing of the target is read. The layer owns both blobs and closes them; they
// stay the caller's when OpenWithTarget fails.
//
// For the layers above it is like any other: a file as large as the volume, of
// which each sector is where the volume has it.
func OpenWithTarget(ctx context.Context, src, target fetcher.Blob) (*Layer, error) {
	l, err := loadWithTarget(ctx, src, target)
	if errors.Is(err, ErrCorrupt) && fetcher.Drop(ctx, src, 0, src.Size()) == nil {
		return loadWithTarget(ctx, src, target)
	}
	return l, err
}

func loadWithTarget(ctx context.Context, src, target fetcher.Blob) (*Layer, error) {
	trailer, err := readTrailer(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("read trailer: %w", err)
	}
	sectors := uint64(target.Size()+SectorSize-1) / SectorSize
	x, err := readIndex(ctx, src, trailer, func(r record, limit uint64) (record, string, string) {
		field, reason := r.checkTarget(limit, sectors)
		return r, field, reason
	})
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	j := &joint{Stack{index: x, sources: []fetcher.Blob{fileTag: src, targetTag: whole(target)}, size: x.size()}}
	return &Layer{file: src, src: j, trailer: trailer, index: x.identity()}, nil
}

// checkTarget is check for the layer file or a target of that many sectors,
// whichever r points to.
func (r record) checkTarget(limit, sectors uint64) (field, reason string) {
	switch {
	case r.zeroed() || r.tag() == fileTag:
		return r.check(limit)
	case r.tag() != targetTag:
		return "tag", fmt.Sprintf("%d: a layer has one target", r.tag())
	case r.sourceEnd() > sectors:
		return "moffset", fmt.Sprintf("sectors %d+%d are past the target's end at %d", r.source(), r.sectors(), sectors)
	}
	return r.checkLength()
}

// A joint is a layer file and its target as one blob, in which every sector is
// where the volume has it.
type joint struct{ Stack }

var _ fetcher.Expecter = (*joint)(nil)

// ReadAt reads under the io.ReaderAt contract.
func (j *joint) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := clampRead(len(p), off, j.size)
	if n == 0 {
		return 0, eof
	}
	tag, err := j.index.read(ctx, j.sources, p[:n], off)
	switch {
	case err == nil:
		return n, eof
	case tag == targetTag:
		return 0, fmt.Errorf("read target: %w", err)
	}
	return 0, err
}

// Expect tells whoever has what the bytes consist of.
func (j *joint) Expect(ctx context.Context, off, n int64) error {
	if n == 0 && !j.Far() {
		return errors.ErrUnsupported
	}
	return j.Stack.Expect(ctx, off, n)
}

// A padded blob goes on with zeros to the end of its last sector.
type padded struct{ fetcher.Blob }

// whole returns b as whole sectors: archives may lack the padding at their end.
func whole(b fetcher.Blob) fetcher.Blob {
	if b.Size()%SectorSize == 0 {
		return b
	}
	return padded{b}
}

func (b padded) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	have := max(min(int64(len(p)), b.Size()-off), 0)
	if n, err := b.Blob.ReadAt(ctx, p[:have], off); int64(n) < have {
		return n, err
	}
	clear(p[have:])
	return len(p), nil
}

func (b padded) Expect(ctx context.Context, off, n int64) error {
	return fetcher.Expect(ctx, b.Blob, off, min(n, max(b.Size()-off, 0)))
}

// size returns where x ends, in bytes.
func (x index) size() int64 {
	if len(x) == 0 {
		return 0
	}
	return int64(x[len(x)-1].end()) * SectorSize
}

// identity returns x with every run's source where the volume has it.
func (x index) identity() index {
	var out index
	for _, r := range x {
		if r.zeroed() {
			out = append(out, r.withTag(0))
			continue
		}
		out = appendJoined(out, newRecord(r.lba(), r.sectors(), r.lba()))
	}
	return out
}
