// SPDX-License-Identifier: Apache-2.0

// Package tarblob unwraps and wraps layer blobs that are the only entry of a
// tar file. Container tools expect a layer to be a tar, so a block layer in a
// registry usually looks like one: a pax header, the entry
// "overlaybd.commit", the payload.
//
// It also writes and reads the headers of other tars alone, from which the
// metadata of their files can be made; see [WriteHeaders].
//
// The one thing to know: the payload stays where it is. [Open] finds its
// offset and returns a [fetcher.Blob] that adds it to every read.
package tarblob

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// ErrCorrupt is the class of errors for a tar header that cannot be what was
// written.
var ErrCorrupt = errors.New("tar wrapper corrupt")

// Open returns the payload of src: a *[Payload] of the first entry if src is a
// tar, and src itself if it is none. What is returned owns src.
func Open(ctx context.Context, src fetcher.Blob) (fetcher.Blob, error) {
	b, err := find(ctx, src)
	if !errors.Is(err, ErrCorrupt) {
		return b, err
	}
	// The fault may be in a copy that a cache keeps of the headers.
	if derr := fetcher.Drop(ctx, src, 0, min(headLen, src.Size())); derr != nil && !errors.Is(derr, errors.ErrUnsupported) {
		return nil, errors.Join(err, fmt.Errorf("drop cached tar header: %w", derr))
	}
	return find(ctx, src)
}

// At returns n bytes of src from byte off on as its payload, if they are all of
// src or lie where a tar has its only entry: behind a header of its own, or
// after a pax header too, and before nothing but the end of the tar. Who knows the
// payload by its end can do without the headers, which of a far blob take
// another request.
func At(src fetcher.Blob, off, n int64) (fetcher.Blob, bool) {
	if off == 0 && n == src.Size() {
		return src, true
	}
	if off != blockLen && off != headers || src.Size() != off+n+padding(n)+trailer {
		return nil, false
	}
	return &Payload{src: src, off: off, size: n}, true
}

// headLen is what is read at a time: as a rule all headers, which are 1536
// bytes where the reference implementation wrote them.
const headLen = 4 << 10

// maxHead bounds all headers: 4 MiB leave room for a long name and a pax
// header of the 1 MiB each that archive/tar permits.
const maxHead = 4 << 20

// find is one attempt of Open.
func find(ctx context.Context, src fetcher.Blob) (fetcher.Blob, error) {
	if src.Size() < blockLen {
		return src, nil
	}
	head := counter{r: bufio.NewReaderSize(io.LimitReader(fetcher.AtContext(ctx, src), maxHead), headLen)}
	first, err := head.r.Peek(blockLen)
	if err != nil {
		return nil, fmt.Errorf("read tar header: %w", err)
	}
	if magic := string(first[257:263]); magic != "ustar\x00" && magic != "ustar " {
		return src, nil
	}
	h, err := firstEntry(&head)
	if err != nil {
		return nil, err
	}
	if h.Size > src.Size()-head.n {
		return nil, fmt.Errorf("%w: entry %q of %d bytes at byte %d of a blob of %d bytes", ErrCorrupt, h.Name, h.Size, head.n, src.Size())
	}
	return &Payload{src: src, off: head.n, size: h.Size}, nil
}

// maxGlobals bounds the global pax headers before the entry; one is unusual.
const maxGlobals = 16

// firstEntry reads up to the payload of the first entry that is a file.
func firstEntry(head *counter) (*tar.Header, error) {
	tr := tar.NewReader(head)
	for range maxGlobals {
		h, err := tr.Next()
		switch {
		case errors.Is(err, tar.ErrHeader) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("%w: header before byte %d: %w", ErrCorrupt, head.n, err)
		case err != nil:
			return nil, fmt.Errorf("read tar header at byte %d: %w", head.n, err)
		case h.Typeflag == tar.TypeXGlobalHeader:
			continue
		case h.Typeflag != tar.TypeReg || sparse(h):
			return nil, fmt.Errorf("first entry %q of the tar, of type %q, is no plain file: %w", h.Name, h.Typeflag, errors.ErrUnsupported)
		}
		return h, nil
	}
	return nil, fmt.Errorf("%w: more than %d global headers", ErrCorrupt, maxGlobals)
}

// sparse reports whether the entry's payload is not what is stored.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// counter counts the bytes that the tar reader took, which reads no further
// than to the start of the payload.
type counter struct {
	r *bufio.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// A Payload is the entry of a tar as a [fetcher.Blob]. What its source can do
// besides, it can.
type Payload struct {
	src       fetcher.Blob
	off, size int64
}

var (
	_ fetcher.Blob        = (*Payload)(nil)
	_ fetcher.RangeReader = (*Payload)(nil)
	_ fetcher.Dropper     = (*Payload)(nil)
	_ fetcher.Expecter    = (*Payload)(nil)
)

// Offset returns where in the tar the payload starts, in bytes.
func (b *Payload) Offset() int64 { return b.off }

// Size returns the length of the payload.
func (b *Payload) Size() int64 { return b.size }

// Close closes the tar.
func (b *Payload) Close() error { return b.src.Close() }

// ReadAt reads from byte off of the payload on.
func (b *Payload) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read tar payload at negative offset %d", off)
	}
	rest := max(b.size-off, 0)
	if int64(len(p)) <= rest {
		return b.src.ReadAt(ctx, p, b.off+off)
	}
	if rest == 0 {
		return 0, io.EOF
	}
	n, err := b.src.ReadAt(ctx, p[:rest], b.off+off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// ReadRange streams bytes [off, off+n) of the payload.
func (b *Payload) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > b.size || n > b.size-off {
		return nil, fmt.Errorf("read %d bytes at byte %d of a tar payload of %d bytes", n, off, b.size)
	}
	return fetcher.ReadRange(ctx, b.src, b.off+off, n)
}

// Drop makes the source forget bytes [off, off+n) of the payload.
func (b *Payload) Drop(ctx context.Context, off, n int64) error {
	off = max(off, 0)
	if n = min(n, b.size-off); n <= 0 {
		return nil
	}
	return fetcher.Drop(ctx, b.src, b.off+off, n)
}

// Expect has bytes [off, off+n) of the payload fetched.
func (b *Payload) Expect(ctx context.Context, off, n int64) error {
	off = max(off, 0)
	return fetcher.Expect(ctx, b.src, b.off+off, max(min(n, b.size-off), 0))
}
