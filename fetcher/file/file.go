// SPDX-License-Identifier: Apache-2.0

// Package file opens blobs that lie on local disk. The one thing to know: a
// blob's size is taken when it is opened, and a file cut short later fails
// reads with an error, never with zeros or an early io.EOF.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"syscall"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// An Opener opens the file of a file:// URL. The zero value is ready.
type Opener struct{}

var _ fetcher.Opener = Opener{}

// Open opens the file ref's URL names. A Ref.Size other than 0 must be the
// file's.
func (Opener) Open(_ context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	u, err := url.Parse(ref.URL)
	if err != nil || u.Scheme != "file" || u.Host != "" && u.Host != "localhost" || u.Path == "" {
		return nil, fmt.Errorf("open blob %s: its URL names no local file", ref.Digest)
	}
	b, err := Open(u.Path)
	if err != nil {
		return nil, err
	}
	if ref.Size != 0 && ref.Size != b.Size() {
		return nil, errors.Join(fmt.Errorf("open blob %s: %s has %d bytes, not %d", ref.Digest, u.Path, b.Size(), ref.Size), b.Close())
	}
	return b, nil
}

// A Blob is an open file.
type Blob struct {
	f    *os.File
	size int64
}

var _ fetcher.Blob = (*Blob)(nil)

// Open opens the regular file at path.
func Open(path string) (*Blob, error) {
	// Not blocking, because opening a pipe waits for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open blob file: %w: %w", fetcher.ErrNotFound, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob file: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blob file %s: %w", path, err), f.Close())
	}
	return &Blob{f, fi.Size()}, nil
}

// ReadAt reads from the file; it does not wait, so ctx is only looked at once.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("read %s: %w", b.f.Name(), err)
	}
	want := len(p)
	p = p[:max(0, min(int64(want), b.size-off))]
	n, err := b.f.ReadAt(p, off)
	switch {
	case errors.Is(err, io.EOF) && n < len(p):
		return n, fmt.Errorf("read %s: it now ends at %d, not %d: %w", b.f.Name(), off+int64(n), b.size, io.ErrUnexpectedEOF)
	case err == nil && len(p) < want:
		return n, io.EOF
	}
	return n, err
}

// Size returns the size the file had when it was opened.
func (b *Blob) Size() int64 { return b.size }

// Close closes the file.
func (b *Blob) Close() error { return b.f.Close() }
