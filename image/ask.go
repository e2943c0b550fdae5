// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// An asker is a blob that can be asked for bytes before they are read, such as
// one in the cache.
type asker interface {
	Ask(ctx context.Context, off, n int64) error
}

// What is fetched of the end of a layer, in bytes. A zfile has its jump table
// there, 4 bytes for each 4 KiB of content, and before it the index: a 350th to a
// 500th of layers of Debian's files. Before these lies the metadata of the file
// system, of which mounting reads what is farthest from the end: 400 KiB of a
// base of 75 MB, of which mounting and starting Redis read 15 blocks of 16 KiB,
// 370 KiB of a layer of 186 MB, none of one of 239, 780 KiB of one of 435.
//
// Of a huge layer the jump table alone is longer than that. The end of it is
// enough to begin with, and to ask for the metadata, which lies before it.
const (
	indexShare  = 256
	maxMetadata = 320 << 10

	minTail   = 112 << 10
	maxTail   = 2 << 20
	hugeLayer = 512 << 20
	hugeTail  = 320 << 10 // the 256 KiB of a jump table that zfile reads first, and what follows
)

// askEnd asks for the end of a far blob at once. The reads that open the layer
// join the requests.
func askEnd(ctx context.Context, blob fetcher.Blob) error {
	n := blob.Size() / indexShare
	n += min(n, maxMetadata)
	n = min(blob.Size(), max(minTail, min(maxTail, n)))
	if blob.Size() > hugeLayer {
		n = hugeTail
	}
	return ask(ctx, blob, blob.Size()-n, n)
}

// askBeforeIndex asks for what lies before the index of a huge layer's zfile.
func askBeforeIndex(ctx context.Context, blob fetcher.Blob, index int64) error {
	if blob.Size() <= hugeLayer {
		return nil
	}
	n := min(maxTail, index)
	return ask(ctx, blob, index-n, n)
}

// askPiece is the most that one request asks for, in bytes. A new connection
// carries 14 KB in its first round trip and twice as much in each one after: 2
// MiB by eight of them take five round trips, where one takes eight.
const askPiece = 256 << 10

func ask(ctx context.Context, blob fetcher.Blob, off, n int64) error {
	far, ok := blob.(asker)
	if !ok {
		return nil
	}
	for n > 0 { // the last bytes first: opening waits for them, mounting for the others
		piece := min(askPiece, n)
		n -= piece
		if err := far.Ask(ctx, off+n, piece); err != nil {
			return err
		}
	}
	return nil
}
