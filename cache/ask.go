// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"fmt"
	"io/fs"
	"sync"
)

// Ask has bytes [off, off+n) on their way, as far as they are missing, and does
// not wait for them. Reads of these bytes join the request, or the few there are
// where n is more than the largest one: who will read in several places that lie
// close together asks for all of them first.
func (b *Blob) Ask(ctx context.Context, off, n int64) error {
	if off < 0 || n < 0 {
		return fmt.Errorf("ask for %d bytes of blob %s at offset %d: %w", n, b.s.key, off, fs.ErrInvalid)
	}
	end := off + min(n, max(b.Size()-off, 0))
	f, _, err := b.first(ctx, want{off: off, end: end, until: end})
	if f != nil {
		f.release()
	}
	return err
}

// Memo returns where readers keep what they have made of the blob's bytes, for
// each other. All Blobs of one digest share it while any of them is open.
func (b *Blob) Memo() *sync.Map { return &b.s.memo }
