// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// maxPacking is how many layers are packed while another is applied: one keeps
// the CPUs or the line busy, the second fills the gaps of the first.
const maxPacking = 2

// A Pack stores what an applied layer has become, and returns it.
type Pack[T any] func(ctx context.Context) (T, error)

// InOrder calls apply for each layer, bottom first, and packs it while the
// next is applied. It returns what was packed in the order of the layers. Of
// several errors it returns the first: the others follow from it.
func InOrder[T any](ctx context.Context, layers []Layer, apply func(context.Context, Layer) (Pack[T], error)) ([]T, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	packing, ctx := errgroup.WithContext(ctx)
	packing.SetLimit(maxPacking)
	packed := make([]T, len(layers))
	var failed bool
	for i, l := range layers {
		pack, err := apply(ctx, l)
		if failed = err != nil; failed {
			cancel(fmt.Errorf("apply layer %s: %w", l.Source.Digest, err))
			break
		}
		packing.Go(func() (err error) {
			if packed[i], err = pack(ctx); err != nil {
				return fmt.Errorf("pack layer %s: %w", l.Source.Digest, err)
			}
			return nil
		})
	}
	if err := packing.Wait(); err != nil || failed {
		return nil, context.Cause(ctx)
	}
	return packed, nil
}
