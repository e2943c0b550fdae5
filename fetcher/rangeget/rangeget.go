// SPDX-License-Identifier: Apache-2.0

// Package rangeget reads a blob by HTTP requests for ranges of it. Registries,
// buckets and web servers differ in how they are asked; that is the Get of
// their [Options]. What makes their answers trustworthy is here.
//
// The one thing to know: no byte is handed on before the answer's header has
// said that it is the one asked for, and a body that ends early or stalls is
// an error, never an end.
package rangeget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Options describe a Blob.
type Options struct {
	Digest digest.Digest // names the blob in errors
	Host   string        // names who is asked
	Size   int64         // bytes; 0 if unknown, until Probe

	// Get asks for bytes [off, off+n), n > 0. Its answer is served. life ends
	// with the blob.
	Get func(ctx, life context.Context, off, n int64) (*Answer, error)

	// Distrust is called after an answer that was not what was asked for; nil
	// for nothing.
	Distrust func()
}

// A Blob is a blob that is read by HTTP requests for ranges.
type Blob struct {
	opts  Options
	life  context.Context // ends with Close
	close context.CancelFunc
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
)

// New returns a Blob. It sends no request.
func New(opts Options) *Blob {
	b := &Blob{opts: opts}
	b.life, b.close = context.WithCancel(context.Background())
	return b
}

// Probe sets the size of b, by a range read as object stores sign URLs for
// GET alone.
func (b *Blob) Probe(ctx context.Context) error {
	a, err := b.opts.Get(ctx, b.life, 0, 1)
	if err != nil {
		return err
	}
	defer a.Discard()
	c, ok := parseContentRange(a.Header.Get("Content-Range"))
	switch {
	case a.StatusCode == http.StatusOK && a.ContentLength >= 0:
		b.opts.Size = a.ContentLength
	case a.StatusCode == http.StatusPartialContent && ok && c.off == 0 && c.n == 1 && c.total > 0:
		b.opts.Size = c.total
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable && ok && c.total == 0:
		b.opts.Size = 0
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return StatusError(a.Response)
	default:
		return Temporary("%s does not tell the size: status %d, Content-Range %.100q",
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
		end = fmt.Errorf("read blob %s past its end at %d: %w", b.opts.Digest, b.Size(), io.ErrUnexpectedEOF)
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
	size := b.Size()
	switch {
	case b.life.Err() != nil:
		return 0, nil, fmt.Errorf("read blob %s: %w", b.opts.Digest, fs.ErrClosed)
	case off < 0 || n < 0:
		return 0, nil, fmt.Errorf("read blob %s: %d bytes at %d is no range", b.opts.Digest, n, off)
	case n == 0:
		return 0, nil, nil
	case off >= size:
		return 0, io.EOF, io.EOF
	case n > size-off:
		return size - off, io.EOF, nil
	}
	return n, nil, nil
}

// stream asks for bytes [off, off+n), which exist.
func (b *Blob) stream(ctx context.Context, off, n int64) (*stream, error) {
	describe := func(err error) error {
		return fmt.Errorf("read bytes %d-%d of blob %s at %s: %w", off, off+n-1, b.opts.Digest, b.opts.Host, err)
	}
	a, err := b.opts.Get(ctx, b.life, off, n)
	if err != nil {
		return nil, describe(err)
	}
	if err := b.check(a, off, n); err != nil {
		_ = a.Body.Close()
		if b.opts.Distrust != nil {
			b.opts.Distrust()
		}
		return nil, describe(err)
	}
	return &stream{body: a.Body, left: n, describe: describe}, nil
}

// maxSkip bounds what is read and thrown away of a 200 to get to the range
// that was asked for: 256 KiB cost about as much as a round trip.
const maxSkip = 256 << 10

// check makes sure that the body of a is about to yield bytes [off, off+n).
func (b *Blob) check(a *Answer, off, n int64) error {
	server, encoding := a.Request.URL.Host, a.Header.Get("Content-Encoding")
	switch {
	case encoding != "" && encoding != "identity":
		return Temporary("%s encoded the bytes as %.20q", server, encoding)
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return StatusError(a.Response)
	case a.StatusCode == http.StatusOK:
		return b.skip(a, off)
	}
	c, ok := parseContentRange(a.Header.Get("Content-Range"))
	if !ok || c.off != off || c.n != n || c.total >= 0 && c.total != b.Size() || a.ContentLength >= 0 && a.ContentLength != n {
		return Temporary("%s answered with %d bytes as Content-Range %.100q of a blob of %d",
			server, a.ContentLength, a.Header.Get("Content-Range"), b.Size())
	}
	return nil
}

// skip gets to off in the body of a server that ignored the range.
func (b *Blob) skip(a *Answer, off int64) error {
	if a.ContentLength != b.Size() {
		return Temporary("%s ignored the range and answered with %d bytes of a blob of %d", a.Request.URL.Host, a.ContentLength, b.Size())
	}
	if off > maxSkip {
		return Temporary("%s ignored the range", a.Request.URL.Host)
	}
	_, err := io.CopyN(io.Discard, a.Body, off)
	if errors.Is(err, io.EOF) {
		err = Temporary("%w", io.ErrUnexpectedEOF)
	}
	return err
}

// Size returns the length of the blob in bytes.
func (b *Blob) Size() int64 { return b.opts.Size }

// Close makes reads, those in flight too, fail with fs.ErrClosed.
func (b *Blob) Close() error {
	b.close()
	return nil
}
