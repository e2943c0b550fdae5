// SPDX-License-Identifier: Apache-2.0

// Package image assembles layers into disks: it opens the layers a volume spec
// names, wherever they lie and whatever they are wrapped in, merges their
// indexes, and serves the result as a backend.Volume. The formats live in the
// packages below it; where bytes come from is the Opener's business.
package image

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// parallelOpens is how many layers are opened at once: all of any image that is
// not strange, since each is a round trip, and as many as memory allows, since
// each holds up to half a MiB besides what the cache bounds. How many requests a
// registry gets at a time the fetcher decides.
const parallelOpens = 128

// An Image is a stack of read-only layers as one disk.
type Image struct {
	*lsmt.Stack
}

var _ backend.VectorReader = (*Image)(nil)

// Open opens the lowers of v, ignoring its upper.
func Open(ctx context.Context, v *spec.Volume, blobs fetcher.Opener) (*Image, error) {
	layers, err := openLowers(ctx, v, blobs)
	if err != nil {
		return nil, err
	}
	s, err := lsmt.Merge(layers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("merge %d layers: %w", len(layers), err), closeAll(layers))
	}
	return &Image{s}, nil
}

// ReadvAt scatters one read over the buffers of iov.
func (i *Image) ReadvAt(ctx context.Context, iov [][]byte, off int64) (int, error) {
	return readv(ctx, i, iov, off)
}

// openLowers opens every lower of v that holds blocks, in parallel.
func openLowers(ctx context.Context, v *spec.Volume, blobs fetcher.Opener) ([]*lsmt.Layer, error) {
	v, err := Localize(ctx, v, blobs)
	if err != nil {
		return nil, err
	}
	lowers := v.Lowers
	if v.AccelerationLayer && len(lowers) > 0 {
		lowers = lowers[:len(lowers)-1] // the trace of an earlier run
	}
	layers := make([]*lsmt.Layer, len(lowers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelOpens)
	for i, l := range lowers {
		g.Go(func() error {
			layer, err := openLower(gctx, v, l, blobs)
			if err != nil {
				return fmt.Errorf("lowers[%d]: %w", i, err)
			}
			layers[i] = layer
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, errors.Join(err, closeAll(layers))
	}
	return layers, nil
}

func openLower(ctx context.Context, v *spec.Volume, l spec.Lower, blobs fetcher.Opener) (*lsmt.Layer, error) {
	blob, name, err := source(ctx, v, l, blobs)
	if err != nil {
		return nil, err
	}
	target, err := openTarget(ctx, v, l, blobs)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", name, err), blob.Close())
	}
	layer, err := openAsked(ctx, blob, target, name)
	if err != nil {
		err = errors.Join(err, blob.Close())
		if target != nil {
			err = errors.Join(err, target.Close())
		}
		return nil, err
	}
	return layer, nil
}

func openAsked(ctx context.Context, blob, target fetcher.Blob, name string) (*lsmt.Layer, error) {
	if err := askEnd(ctx, blob); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return openTwice(ctx, blob, target, name)
}

func closeAll(layers []*lsmt.Layer) error {
	var errs []error
	for _, l := range layers {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

func readv(ctx context.Context, v backend.Volume, iov [][]byte, off int64) (int, error) {
	var total int
	for _, p := range iov {
		n, err := v.ReadAt(ctx, p, off+int64(total))
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}
