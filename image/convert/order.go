// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// maxPacking is how many layers are packed while another is applied: one keeps
// the CPUs or the line busy, the second fills the gaps of the first.
const maxPacking = 2

// A Pack stores the blob of an applied layer, and returns its digest and size.
type Pack func(ctx context.Context) (ocispec.Descriptor, error)

// InOrder calls apply for each layer, bottom first, and packs it while the
// next is applied. It returns the blobs in the order of the layers. Of several
// errors it returns the first: the others follow from it.
func InOrder(ctx context.Context, layers []Layer, apply func(context.Context, Layer) (Pack, error)) ([]ocispec.Descriptor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	packing, ctx := errgroup.WithContext(ctx)
	packing.SetLimit(maxPacking)
	blobs := make([]ocispec.Descriptor, len(layers))
	var failed bool
	for i, l := range layers {
		pack, err := apply(ctx, l)
		if failed = err != nil; failed {
			cancel(fmt.Errorf("apply layer %s: %w", l.Source.Digest, err))
			break
		}
		packing.Go(func() (err error) {
			if blobs[i], err = pack(ctx); err != nil {
				return fmt.Errorf("pack layer %s: %w", l.Source.Digest, err)
			}
			return nil
		})
	}
	if err := packing.Wait(); err != nil || failed {
		return nil, context.Cause(ctx)
	}
	return blobs, nil
}
