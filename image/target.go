// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// OpenTargetLayer is OpenLayer for a layer whose files' content lies in target,
// an uncompressed tar of which nothing is read yet. It owns both blobs on
// success.
func OpenTargetLayer(ctx context.Context, blob, target fetcher.Blob, name string) (*lsmt.Layer, error) {
	content, err := unwrap(ctx, blob)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	l, err := lsmt.OpenWithTarget(ctx, named{content, name}, target)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return l, nil
}
