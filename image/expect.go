// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

var _ fetcher.Expecter = named{}

// Expect passes on to the blob, whose errors nobody is shown.
func (b named) Expect(ctx context.Context, off, n int64) error {
	return fetcher.Expect(ctx, b.Blob, off, n)
}
