// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// fileBlob is a local file as a Blob.
type fileBlob struct {
	f    *os.File
	size int64
}

var _ fetcher.Blob = (*fileBlob)(nil)

func openFile(path string) (*fileBlob, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open %s: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &fileBlob{f, info.Size()}, nil
}

func (b *fileBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return b.f.ReadAt(p, off)
}

func (b *fileBlob) Size() int64  { return b.size }
func (b *fileBlob) Close() error { return b.f.Close() }

// closeFile closes what was only read, where no error is of interest.
func closeFile(c io.Closer) { _ = c.Close() }
