// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Blob is a blob of a registry, open for reads.
type Blob struct {
	o      *Opener
	host   *host
	access *access
	url    *url.URL // at the registry
	digest digest.Digest
	size   int64

	// redirect is where the registry sent the last read that it did not
	// serve itself; nil when it serves them or that place refused a read.
	redirect atomic.Pointer[url.URL]

	life  context.Context // ends with Close
	close context.CancelFunc
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
)

func newBlob(o *Opener, h *host, l location, size int64) *Blob {
	repo := l.repo(h)
	u := h.base.JoinPath(repo, "blobs", l.digest.String())
	if h.ns != "" {
		u.RawQuery = url.Values{"ns": {h.ns}}.Encode()
	}
	b := &Blob{o: o, host: h, access: o.access(h.repository(repo)), url: u, digest: l.digest, size: size}
	b.life, b.close = context.WithCancel(context.Background())
	return b
}

// probe sets the size of b, by a range read as object stores sign URLs for
// GET alone.
func (b *Blob) probe(ctx context.Context) error {
	a, err := b.fetch(ctx, 0, 1)
	if err != nil {
		return err
	}
	defer a.discard()
	c, ok := parseContentRange(a.Header.Get("Content-Range"))
	switch {
	case a.StatusCode == http.StatusOK && a.ContentLength >= 0:
		b.size = a.ContentLength
	case a.StatusCode == http.StatusPartialContent && ok && c.off == 0 && c.n == 1 && c.total > 0:
		b.size = c.total
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable && ok && c.total == 0:
		b.size = 0
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return statusError(a.Response)
	default:
		return temporary("%s does not tell the size: status %d, Content-Range %.100q",
			a.Request.URL.Host, a.StatusCode, a.Header.Get("Content-Range"))
	}
	return nil
}

// ReadAt reads by one request.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, end, err := b.clip(off, int64(len(p)))
	if n == 0 || err != nil {
		return 0, err
	}
	s, err := b.stream(ctx, off, n)
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }()
	got, err := io.ReadFull(s, p[:n])
	if err == nil {
		err = end
	}
	return got, err
}

// ReadRange returns a stream of one request, which is sent before ReadRange
// returns.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	n, end, err := b.clip(off, n)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if end != nil {
		end = fmt.Errorf("read blob %s past its end at %d: %w", b.digest, b.size, io.ErrUnexpectedEOF)
	}
	if n == 0 {
		return &stream{end: end}, nil
	}
	s, err := b.stream(ctx, off, n)
	if err != nil {
		return nil, err
	}
	s.end = end
	return s, nil
}

// clip returns how many of n bytes from off exist. end is io.EOF when that is
// less than n, and err when there is nothing to read.
func (b *Blob) clip(off, n int64) (have int64, end, err error) {
	switch {
	case b.life.Err() != nil:
		return 0, nil, fmt.Errorf("read blob %s: %w", b.digest, fs.ErrClosed)
	case off < 0 || n < 0:
		return 0, nil, fmt.Errorf("read blob %s: %d bytes at %d is no range", b.digest, n, off)
	case n == 0:
		return 0, nil, nil
	case off >= b.size:
		return 0, io.EOF, io.EOF
	case n > b.size-off:
		return b.size - off, io.EOF, nil
	}
	return n, nil, nil
}

// stream asks for bytes [off, off+n), which exist.
func (b *Blob) stream(ctx context.Context, off, n int64) (*stream, error) {
	describe := func(err error) error {
		return fmt.Errorf("read bytes %d-%d of blob %s at %s: %w", off, off+n-1, b.digest, b.url.Host, err)
	}
	a, err := b.fetch(ctx, off, n)
	if err != nil {
		return nil, describe(err)
	}
	if err := b.check(a, off, n); err != nil {
		_ = a.body.Close()
		b.redirect.Store(nil) // the next read may be sent to a better place
		return nil, describe(err)
	}
	return &stream{body: a.body, left: n, describe: describe}, nil
}

// maxSkip bounds what is read and thrown away of a 200 to get to the range
// that was asked for: 256 KiB cost about as much as a round trip.
const maxSkip = 256 << 10

// check makes sure that the body of a is about to yield bytes [off, off+n).
func (b *Blob) check(a *answer, off, n int64) error {
	server, encoding := a.Request.URL.Host, a.Header.Get("Content-Encoding")
	switch {
	case encoding != "" && encoding != "identity":
		return temporary("%s encoded the bytes as %.20q", server, encoding)
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return statusError(a.Response)
	case a.StatusCode == http.StatusOK:
		return b.skip(a, off)
	}
	c, ok := parseContentRange(a.Header.Get("Content-Range"))
	if !ok || c.off != off || c.n != n || c.total >= 0 && c.total != b.size || a.ContentLength >= 0 && a.ContentLength != n {
		return temporary("%s answered with %d bytes as Content-Range %.100q of a blob of %d",
			server, a.ContentLength, a.Header.Get("Content-Range"), b.size)
	}
	return nil
}

// skip gets to off in the body of a server that ignored the range.
func (b *Blob) skip(a *answer, off int64) error {
	if a.ContentLength != b.size {
		return temporary("%s ignored the range and answered with %d bytes of a blob of %d", a.Request.URL.Host, a.ContentLength, b.size)
	}
	if off > maxSkip {
		return temporary("%s ignored the range", a.Request.URL.Host)
	}
	_, err := io.CopyN(io.Discard, a.body, off)
	if errors.Is(err, io.EOF) {
		err = temporary("%w", io.ErrUnexpectedEOF)
	}
	return err
}

// Size returns the length of the blob in bytes.
func (b *Blob) Size() int64 { return b.size }

// Close makes reads, those in flight too, fail with fs.ErrClosed.
func (b *Blob) Close() error {
	b.close()
	return nil
}
