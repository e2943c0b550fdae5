// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// maxWindow bounds the history of a zstd stream, in bytes, and with it the
// memory for it. It is what zstd --long makes at most without being forced.
const maxWindow = 128 << 20

// A Kind is what a layer is compressed with.
type Kind string

// The kinds that are known. A layer may be compressed not at all.
const (
	Plain Kind = ""
	Gzip  Kind = "gzip"
	Zstd  Kind = "zstd"
)

// Decompress returns the content of r, whatever r is compressed with: gzip, of
// one or more members, zstd, or nothing. It goes by the first bytes and ignores
// media types, as these are often wrong.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	c, err := open(r, false)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// A content is that of a compressed stream.
type content struct {
	io.ReadCloser
	kind  Kind
	index indexer // nil if none was asked for, or the stream is not compressed
}

// An indexer decompresses, and at the end has an index of the stream.
type indexer interface {
	io.Reader
	WriteIndex(w io.Writer) (int64, error)
}

// open returns the content of r, with an index if indexed.
func open(r io.Reader, indexed bool) (*content, error) {
	buf := bufio.NewReaderSize(r, 1<<20)
	head, err := buf.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	c := &content{kind: kindOf(head)}
	switch {
	case c.kind == Plain:
		c.ReadCloser = io.NopCloser(buf)
		return c, nil
	case indexed:
		c.index = newIndexer(c.kind, buf)
		c.ReadCloser = io.NopCloser(c.index)
	default:
		c.ReadCloser, err = decompressor(c.kind, buf)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", c.kind, err)
	}
	c.ReadCloser = named{c.ReadCloser, c.kind}
	return c, nil
}

func decompressor(kind Kind, r io.Reader) (io.ReadCloser, error) {
	if kind == Gzip {
		return gzip.NewReader(r)
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

func newIndexer(kind Kind, r io.Reader) indexer {
	if kind == Gzip {
		return gzidx.NewReader(r, gzidx.Options{})
	}
	return zstdidx.NewReader(r, zstdidx.Options{})
}

// kindOf tells what a stream that begins with head is compressed with.
func kindOf(head []byte) Kind {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return Gzip
	case isZstd(head):
		return Zstd
	}
	return Plain
}

// isZstd reports whether head begins a zstd frame, or one to be skipped.
func isZstd(head []byte) bool {
	return bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
}

// named says in its errors what could not be decompressed.
type named struct {
	io.ReadCloser
	kind Kind
}

func (n named) Read(p []byte) (int, error) {
	k, err := n.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader demands it bare
		err = fmt.Errorf("decompress %s: %w", n.kind, err)
	}
	return k, err
}

// Close has no error of its own: gzip returns that of Read once more.
func (n named) Close() error {
	_ = n.ReadCloser.Close()
	return nil
}
