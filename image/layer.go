// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// layerFiles are the names a layer may have in its directory, in the order the
// reference tries them: downloaded or converted, legacy, sealed in place.
var layerFiles = []string{"overlaybd.commit", ".commit", "overlaybd.sealed"}

// OpenLayer opens the layer inside blob, whatever it is wrapped in: a tar
// archive, zfile compression, both or neither. It owns blob on success. name
// is how errors, now and at every read, call the layer.
//
// What fails to open is dropped from the cache and opened once more, since a
// damaged copy of a header may look like any other file.
func OpenLayer(ctx context.Context, blob fetcher.Blob, name string) (*lsmt.Layer, error) {
	return openTwice(ctx, blob, nil, name)
}

// openTwice is OpenLayer for a layer that may have a target.
func openTwice(ctx context.Context, blob, target fetcher.Blob, name string) (*lsmt.Layer, error) {
	l, err := openLayer(ctx, blob, target, name)
	if err == nil || !corrupt(err) {
		return l, err
	}
	if fetcher.Drop(ctx, blob, 0, blob.Size()) != nil {
		return nil, err
	}
	if m := memo(blob); m != nil {
		m.Clear() // it was made of the same bytes
	}
	return openLayer(ctx, blob, target, name)
}

func corrupt(err error) bool {
	return errors.Is(err, lsmt.ErrCorrupt) || errors.Is(err, zfile.ErrCorrupt) || errors.Is(err, tarblob.ErrCorrupt)
}

func openLayer(ctx context.Context, blob, target fetcher.Blob, name string) (*lsmt.Layer, error) {
	content, err := unwrap(ctx, blob)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	var l *lsmt.Layer
	if content = (named{content, name}); target == nil {
		l, err = lsmt.Open(ctx, content)
	} else {
		l, err = lsmt.OpenWithTarget(ctx, content, target)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return l, nil
}

// unwrap returns the layer's file inside blob.
func unwrap(ctx context.Context, blob fetcher.Blob) (fetcher.Blob, error) {
	z, err := openEnd(ctx, blob)
	if z != nil || err != nil {
		return z, err
	}
	payload, err := tarblob.Open(ctx, blob)
	if err != nil {
		return nil, err
	}
	return inflate(ctx, payload)
}

// tailLen is, in bytes, where a zfile's trailer is, with the end of a tar behind
// it: 512, up to 511 to fill the tar's last block, and two blocks.
const tailLen = 2 << 10

// openEnd opens the zfile that blob is, or that is all there is in it, with
// nothing read but its end. It returns nil for any other blob, damaged ones
// too, which have to be opened from the beginning.
func openEnd(ctx context.Context, blob fetcher.Blob) (fetcher.Blob, error) {
	tail := make([]byte, min(blob.Size(), tailLen))
	if n, err := blob.ReadAt(ctx, tail, blob.Size()-int64(len(tail))); n < len(tail) {
		return nil, fmt.Errorf("read the last %d bytes: %w", len(tail), err)
	}
	place, ok := zfile.Locate(tail, blob.Size())
	if !ok {
		return nil, nil
	}
	payload, ok := tarblob.At(blob, place.Off, place.Size)
	if !ok {
		return nil, nil
	}
	if err := askBeforeIndex(ctx, blob, place.Index); err != nil {
		return nil, err
	}
	z, err := zfile.OpenEnd(ctx, payload, memo(blob))
	if errors.Is(err, zfile.ErrCorrupt) || errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return z, nil
}

// memo returns where the readers of a blob's content keep what they share, or
// nil.
func memo(blob fetcher.Blob) *sync.Map {
	if b, ok := blob.(interface{ Memo() *sync.Map }); ok {
		return b.Memo()
	}
	return nil
}

// inflate returns the content of blob when that is a zfile, or blob itself.
func inflate(ctx context.Context, blob fetcher.Blob) (fetcher.Blob, error) {
	head := make([]byte, min(blob.Size(), 512))
	if _, err := blob.ReadAt(ctx, head, 0); err != nil {
		return nil, err
	}
	if !zfile.Detect(head) {
		return blob, nil
	}
	z, err := zfile.Open(ctx, blob)
	if err != nil {
		return nil, err
	}
	return z, nil
}

// named is a Blob whose read errors say which layer they concern, so that the
// one line an operator sees names the digest. It costs nothing on success.
type named struct {
	fetcher.Blob
	name string
}

var _ fetcher.Dropper = named{}

func (b named) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := b.Blob.ReadAt(ctx, p, off)
	if err != nil {
		err = fmt.Errorf("read %d bytes of %s at %d: %w", len(p), b.name, off, err)
	}
	return n, err
}

func (b named) Drop(ctx context.Context, off, n int64) error {
	return fetcher.Drop(ctx, b.Blob, off, n)
}

// source opens the blob of lower l: its file, what lies in its directory, or
// the remote blob, the first that exists.
func source(ctx context.Context, v *spec.Volume, l spec.Lower, blobs fetcher.Opener) (fetcher.Blob, string, error) {
	for _, path := range localPaths(l) {
		b, err := blobs.Open(ctx, fileRef(path))
		if err == nil || !errors.Is(err, fetcher.ErrNotFound) {
			return b, "layer " + path, err
		}
	}
	if l.Digest == "" {
		return nil, "", fmt.Errorf("none of %q: %w", localPaths(l), fetcher.ErrNotFound)
	}
	b, err := blobs.Open(ctx, fetcher.Ref{URL: v.BlobURL(l), Digest: l.Digest, Size: l.Size})
	return b, "layer " + l.Digest.String(), err
}

func localPaths(l spec.Lower) []string {
	var paths []string
	if l.File != "" {
		paths = append(paths, l.File)
	}
	if l.Dir != "" {
		for _, name := range layerFiles {
			paths = append(paths, filepath.Join(l.Dir, name))
		}
	}
	return paths
}

func fileRef(path string) fetcher.Ref {
	return fetcher.Ref{URL: (&url.URL{Scheme: "file", Path: path}).String()}
}
