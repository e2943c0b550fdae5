// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the history of a zstd stream, in bytes, and with it the
// memory for it. It is what zstd --long makes at most without being forced.
const maxWindow = 128 << 20

// Decompress returns the content of r, whatever r is compressed with: gzip, of
// one or more members, zstd, or nothing. It goes by the first bytes and ignores
// media types, as these are often wrong.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(r, 1<<20)
	head, err := buf.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buf)
		if err != nil {
			return nil, fmt.Errorf("decompress gzip: %w", err)
		}
		return named{z, "gzip"}, nil
	case isZstd(head):
		z, err := zstd.NewReader(buf, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("decompress zstd: %w", err)
		}
		return named{z.IOReadCloser(), "zstd"}, nil
	}
	return io.NopCloser(buf), nil
}

// isZstd reports whether head begins a zstd frame, or one to be skipped.
func isZstd(head []byte) bool {
	return bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
}

// named says in its errors what could not be decompressed.
type named struct {
	io.ReadCloser
	algorithm string
}

func (n named) Read(p []byte) (int, error) {
	k, err := n.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader demands it bare
		err = fmt.Errorf("decompress %s: %w", n.algorithm, err)
	}
	return k, err
}

// Close has no error of its own: gzip returns that of Read once more.
func (n named) Close() error {
	_ = n.ReadCloser.Close()
	return nil
}
