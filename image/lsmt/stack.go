// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Stack is a pile of sealed layers as one read-only volume.
type Stack struct {
	index   index
	sources []fetcher.Blob // by tag: the top layer is 0
	size    int64
	parent  string // parent UUID of the bottom layer
}

var _ backend.Volume = (*Stack)(nil)

// Merge stacks layers, the bottom one first. The stack owns the layers and
// closes them; they stay the caller's when Merge fails.
func Merge(layers []*Layer) (*Stack, error) {
	if len(layers) == 0 || len(layers) > MaxLayers {
		return nil, fmt.Errorf("merge layers: %d of them, want 1 to %d", len(layers), MaxLayers)
	}
	s := &Stack{sources: make([]fetcher.Blob, len(layers)), parent: layers[0].trailer.ParentUUID}
	pile := make([]index, len(layers))
	for i, l := range layers {
		pile[i] = l.index
		s.sources[len(layers)-1-i] = l.src
		if l.VirtualSize() > 0 { // 0 inherits from below
			s.size = l.VirtualSize()
		}
	}
	var err error
	if s.index, err = mergeAll(pile); err != nil {
		return nil, fmt.Errorf("merge %d layers: %w", len(layers), err)
	}
	return s, nil
}

// Size returns the size of the volume in bytes.
func (s *Stack) Size() int64 { return s.size }

// Mappings yields the merged index; tag 0 is the top layer.
func (s *Stack) Mappings() iter.Seq[Mapping] { return s.index.mappings() }

// Close closes the layers.
func (s *Stack) Close() error {
	var errs []error
	for _, b := range s.sources {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}

// ReadAt reads from the volume under the io.ReaderAt contract. It allocates
// nothing.
func (s *Stack) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := clampRead(len(p), off, s.size)
	if n == 0 {
		return 0, err
	}
	if err := s.fill(ctx, p[:n], off); err != nil {
		return 0, err
	}
	return n, err
}

// clampRead returns how many of n bytes at byte offset off lie in a volume of
// size bytes, and io.EOF when not all of them do.
func clampRead(n int, off, size int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read at %d: negative offset", off)
	case off >= size && n > 0:
		return 0, io.EOF
	case int64(n) > size-off:
		return int(size - off), io.EOF
	}
	return n, nil
}

// fill reads the bytes from off into p, past the volume's size too: a layer
// above may be larger.
func (s *Stack) fill(ctx context.Context, p []byte, off int64) error {
	if tag, err := s.index.read(ctx, s.sources, p, off); err != nil {
		return fmt.Errorf("read data of layer %d from the top: %w", tag, err)
	}
	return nil
}

// read reads the bytes of the volume from off into p; sources are by tag. With
// an error it returns the tag of the source that failed.
func (x index) read(ctx context.Context, sources []fetcher.Blob, p []byte, off int64) (tag uint8, err error) {
	for i := x.find(uint64(off) / SectorSize); len(p) > 0; {
		r, next := x.piece(i, off, int64(len(p)))
		if r.data {
			if err := readFull(ctx, sources[r.tag], p[:r.n], r.at); err != nil {
				return r.tag, err
			}
		} else {
			clear(p[:r.n])
		}
		p, off, i = p[r.n:], off+r.n, next
	}
	return 0, nil
}
