// SPDX-License-Identifier: Apache-2.0

package fetchertest

import (
	"context"
	"io"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Stalling is a Blob whose streams have the bytes before N, and then nothing until
// who reads them gives up.
type Stalling struct {
	fetcher.Blob
	N int64
}

// ReadRange streams what there is of bytes [off, off+n), and stalls behind it.
func (s Stalling) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	there := io.NewSectionReader(fetcher.AtContext(ctx, s.Blob), off, max(min(off+n, s.N)-off, 0))
	return io.NopCloser(io.MultiReader(there, never{ctx})), nil
}

type never struct{ context.Context }

func (n never) Read([]byte) (int, error) {
	<-n.Done()
	return 0, n.Err()
}
