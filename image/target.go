// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spans"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// OpenTargetLayer is OpenLayer for a layer whose files' content lies in target,
// an uncompressed tar of which nothing is read yet. It owns both blobs on
// success.
func OpenTargetLayer(ctx context.Context, blob, target fetcher.Blob, name string) (*lsmt.Layer, error) {
	return openTwice(ctx, blob, target, name)
}

// openTarget opens the target of lower l, and returns nil if it has none.
func openTarget(ctx context.Context, v *spec.Volume, l spec.Lower, blobs fetcher.Opener) (fetcher.Blob, error) {
	var ref fetcher.Ref
	var name string
	switch {
	case l.TargetFile != "":
		ref, name = fileRef(l.TargetFile), "target "+l.TargetFile
	case l.TargetDigest != "":
		ref = fetcher.Ref{URL: v.TargetURL(l), Digest: l.TargetDigest}
		name = "target " + l.TargetDigest.String()
	case l.GzipIndex != "":
		return nil, fmt.Errorf("gzip index %s without a target", l.GzipIndex)
	default:
		return nil, nil
	}
	open := blobs.Open
	if l.GzipIndex != "" {
		open = func(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
			return openCompressed(ctx, ref, l.GzipIndex, blobs)
		}
	}
	b, err := open(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return named{b, name}, nil
}

// An indexing is a way to read compressed files at random by an index, told by
// the beginning of that.
type indexing struct {
	detect func(head []byte) bool
	info   func(index io.ReaderAt, n int64) (spans.Info, error)
	open   func(ctx context.Context, src fetcher.Blob, index io.ReaderAt, n int64, opts spans.Options) (*spans.Blob, error)
}

func indexings() []indexing {
	return []indexing{
		{gzidx.Detect, gzidx.ReadInfo, gzidx.OpenWith},
		{zstdidx.Detect, zstdidx.ReadInfo, zstdidx.OpenWith},
	}
}

// recent returns how much of the content of src is to be kept in memory: none if
// it is kept anyway.
func recent(src fetcher.Blob) int {
	if _, kept := src.(interface{ Kept() }); kept {
		return -1
	}
	return 0
}

// openCompressed opens the content of the compressed blob of ref, by the index
// in a file. Who keeps blobs keeps the content.
func openCompressed(ctx context.Context, ref fetcher.Ref, path string, blobs fetcher.Opener) (fetcher.Blob, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", fetcher.ErrNotFound, err)
		}
		return nil, fmt.Errorf("open its index: %w", err)
	}
	defer f.Close()
	b, err := openIndexed(ctx, ref, f, blobs)
	if err != nil {
		return nil, fmt.Errorf("by index %s: %w", path, err)
	}
	return b, nil
}

func openIndexed(ctx context.Context, ref fetcher.Ref, f *os.File, blobs fetcher.Opener) (fetcher.Blob, error) {
	x, err := newIndexFile(f)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(ref.URL, "file:") {
		return fetcher.OpenMade(ctx, blobs, ref, "", x.content)
	}
	info, err := x.kind.info(x.f, x.size)
	if err != nil {
		return nil, err
	}
	ref.Size = info.CompressedSize
	key, err := x.key(ref.Digest)
	if err != nil {
		return nil, err
	}
	return fetcher.OpenMade(ctx, blobs, ref, key, x.content)
}

// An indexFile is the open index of a compressed blob.
type indexFile struct {
	f    *os.File
	size int64 // bytes
	kind indexing
}

func newIndexFile(f *os.File) (*indexFile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, 16)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for _, kind := range indexings() {
		if n >= 8 && kind.detect(head[:n]) {
			return &indexFile{f, info.Size(), kind}, nil
		}
	}
	return nil, fmt.Errorf("it begins with %q: neither a gzip nor a zstd index", head[:n])
}

// content is the Maker of a compressed blob's content.
func (x *indexFile) content(ctx context.Context, src fetcher.Blob) (fetcher.Blob, error) {
	b, err := x.kind.open(ctx, src, x.f, x.size, spans.Options{Recent: recent(src)})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// key returns what the content of the target is kept under. The index is a part
// of it: what a wrong one leads to is not to be taken for what another does.
func (x *indexFile) key(target digest.Digest) (digest.Digest, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(x.f, 0, x.size)); err != nil {
		return "", err
	}
	return digest.FromString(fmt.Sprintf("content of %s by index sha256:%x", target, h.Sum(nil))), nil
}
