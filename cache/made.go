// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

var _ fetcher.Keeper = (*opener)(nil)

// OpenMade returns what mk makes of the blob of ref, read through the cache
// under key. Nothing of the blob itself is kept.
func (o *opener) OpenMade(ctx context.Context, ref fetcher.Ref, key digest.Digest, mk fetcher.Maker) (fetcher.Blob, error) {
	if strings.HasPrefix(ref.URL, "file:") {
		return fetcher.OpenMade(ctx, o.next, ref, key, mk)
	}
	if _, err := parseKey(key); err != nil {
		return nil, fmt.Errorf("open what is made of blob %s: %w", ref.Digest, err)
	}
	src, err := o.source(ctx, ref)
	if err != nil {
		return nil, err
	}
	m := &made{Blob: src}
	b, err := mk(ctx, m)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	blob, err := o.c.blob(key, b, m)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return blob, nil
}

// made is what the bytes of a Blob are made of. It counts what is read of it,
// which is what comes over the network.
type made struct {
	fetcher.Blob
	read atomic.Int64 // bytes
}

func (m *made) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := m.Blob.ReadAt(ctx, p, off)
	m.read.Add(int64(n))
	return n, err
}

func (m *made) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := fetcher.ReadRange(ctx, m.Blob, off, n)
	if err != nil {
		return nil, err
	}
	return &madeReader{r, m}, nil
}

// Kept says that copies are kept of what is made of the blob: its Maker need not
// have any.
func (m *made) Kept() {}

// Drop passes on to the source.
func (m *made) Drop(ctx context.Context, off, n int64) error {
	return fetcher.Drop(ctx, m.Blob, off, n)
}

type madeReader struct {
	io.ReadCloser
	m *made
}

func (r *madeReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.m.read.Add(int64(n))
	return n, err
}
