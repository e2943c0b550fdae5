// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"context"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

var _ fetcher.Expecter = (*Reader)(nil)

// Expect has the blocks fetched that hold bytes [off, off+n).
func (r *Reader) Expect(ctx context.Context, off, n int64) error {
	off = max(off, 0)
	if n = min(n, r.size-off); n <= 0 {
		return fetcher.Expect(ctx, r.src, 0, 0)
	}
	bs := int64(r.h.blockSize)
	if err := r.index.reach(ctx, r.src, off/bs); err != nil {
		return err
	}
	start := r.index.offset(off / bs)
	return fetcher.Expect(ctx, r.src, start, r.index.offset((off+n-1)/bs+1)-start)
}
