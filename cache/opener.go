// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Opener opens blobs of next through c, under the digests of their refs. A ref
// whose size is known, by itself or by what is on disk, is opened in next at the
// first read that is not on disk, so that a blob cached whole needs no network.
// Refs without a digest, and those of local files, go to next untouched.
func (c *Cache) Opener(next fetcher.Opener) fetcher.Opener { return &opener{c, next} }

type opener struct {
	c    *Cache
	next fetcher.Opener
}

func (o *opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	if ref.Digest == "" || strings.HasPrefix(ref.URL, "file:") {
		return o.next.Open(ctx, ref)
	}
	if _, err := parseKey(ref.Digest); err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	src, err := o.source(ctx, ref)
	if err != nil {
		return nil, err
	}
	b, err := o.c.Blob(ref.Digest, src)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return b, nil
}

func (o *opener) source(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	if ref.Size == 0 {
		ref.Size = o.c.sizeOf(ref.Digest)
	}
	if ref.Size == 0 {
		return o.next.Open(ctx, ref)
	}
	return &lazyBlob{next: o.next, ref: ref, turn: make(chan struct{}, 1)}, nil
}

// sizeOf returns the size in bytes of a blob that is open or has blocks on disk,
// and 0 for any other.
func (c *Cache) sizeOf(d digest.Digest) int64 {
	k, err := parseKey(d)
	if err != nil {
		return 0
	}
	c.mu.Lock()
	s := c.stores[k]
	c.mu.Unlock()
	if s != nil {
		return s.geo.size
	}
	return recordedSize(c.opts.Dir, k)
}

// A lazyBlob opens its blob at the first read. An open that fails is tried
// again by the next read.
type lazyBlob struct {
	next fetcher.Opener
	ref  fetcher.Ref
	turn chan struct{} // holds one token while someone opens

	mu     sync.Mutex // guards what follows
	blob   fetcher.Blob
	closed bool
}

func (l *lazyBlob) Size() int64 { return l.ref.Size }

func (l *lazyBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	b, err := l.open(ctx)
	if err != nil {
		return 0, err
	}
	return b.ReadAt(ctx, p, off)
}

func (l *lazyBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	return fetcher.ReadRange(ctx, b, off, n)
}

// Drop passes on to the blob if it was opened; else it keeps nothing.
func (l *lazyBlob) Drop(ctx context.Context, off, n int64) error {
	b, err := l.opened()
	if b == nil {
		return err
	}
	return fetcher.Drop(ctx, b, off, n)
}

// open returns the blob, opening it if need be.
func (l *lazyBlob) open(ctx context.Context) (fetcher.Blob, error) {
	if b, err := l.opened(); b != nil || err != nil {
		return b, err
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b, err := l.opened(); b != nil || err != nil {
		return b, err
	}
	b, err := l.next.Open(ctx, l.ref)
	if err != nil {
		return nil, err
	}
	if err := l.keep(b); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (l *lazyBlob) opened() (fetcher.Blob, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fs.ErrClosed
	}
	return l.blob, nil
}

// keep makes b the blob, if it is what was announced.
func (l *lazyBlob) keep(b fetcher.Blob) error {
	if b.Size() != l.ref.Size {
		return fmt.Errorf("open blob %s: source has %d bytes, want %d", l.ref.Digest, b.Size(), l.ref.Size)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fs.ErrClosed
	}
	l.blob = b
	return nil
}

func (l *lazyBlob) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.blob == nil {
		return nil
	}
	return l.blob.Close()
}
