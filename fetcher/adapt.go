// SPDX-License-Identifier: Apache-2.0

package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/opencontainers/go-digest"
)

// ReadRange returns a reader of bytes [off, off+n) of b: its own stream where
// b is a [RangeReader], reads of at most 256 KiB otherwise.
func ReadRange(ctx context.Context, b Blob, off, n int64) (io.ReadCloser, error) {
	if r, ok := b.(RangeReader); ok {
		return r.ReadRange(ctx, off, n)
	}
	return &rangeReader{ctx: ctx, b: b, off: off, end: off + n}, nil
}

// rangeReader streams a range of a Blob that has only ReadAt.
type rangeReader struct {
	ctx      context.Context
	b        Blob
	off, end int64
}

// maxChunk bounds one ReadAt of a rangeReader: large enough to hide a round
// trip, small enough that io.ReadAll's growing buffer does not ask for it all.
const maxChunk = 256 << 10

func (r *rangeReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.end-r.off, maxChunk)]
	n, err := r.b.ReadAt(r.ctx, p, r.off)
	r.off += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if r.off < r.end && n < len(p) {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

func (r *rangeReader) Close() error { return nil }

// Drop makes b forget its copies of bytes [off, off+n). It fails with
// errors.ErrUnsupported when b keeps none.
func Drop(ctx context.Context, b Blob, off, n int64) error {
	if d, ok := b.(Dropper); ok {
		return d.Drop(ctx, off, n)
	}
	return errors.ErrUnsupported
}

// Expect has bytes [off, off+n) of b fetched for a reader to come. It fails
// with errors.ErrUnsupported when b does not fetch, or has no say in it.
func Expect(ctx context.Context, b Blob, off, n int64) error {
	if e, ok := b.(Expecter); ok {
		return e.Expect(ctx, off, n)
	}
	return errors.ErrUnsupported
}

// AtContext returns b as an io.ReaderAt whose reads are bound to ctx, for
// callers such as archive/tar that know no context. The result must not
// outlive ctx.
func AtContext(ctx context.Context, b Blob) *io.SectionReader {
	return io.NewSectionReader(atContext{ctx, b}, 0, b.Size())
}

type atContext struct {
	ctx context.Context
	b   Blob
}

func (a atContext) ReadAt(p []byte, off int64) (int, error) {
	return a.b.ReadAt(a.ctx, p, off)
}

// OpenMade returns what mk makes of the blob that o opens for ref. Where o is a
// [Keeper], copies of its bytes are kept under key.
func OpenMade(ctx context.Context, o Opener, ref Ref, key digest.Digest, mk Maker) (Blob, error) {
	if k, ok := o.(Keeper); ok {
		return k.OpenMade(ctx, ref, key, mk)
	}
	src, err := o.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	b, err := mk(ctx, src)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return b, nil
}

// Schemes is an Opener that hands a Ref to the Opener of its URL's scheme.
type Schemes map[string]Opener

var (
	_ Opener = Schemes(nil)
	_ Keeper = Schemes(nil)
)

// Open opens ref with the Opener of its scheme.
func (s Schemes) Open(ctx context.Context, ref Ref) (Blob, error) {
	o, err := s.opener(ref)
	if err != nil {
		return nil, err
	}
	return o.Open(ctx, ref)
}

// OpenMade opens what mk makes of ref with the Opener of its scheme.
func (s Schemes) OpenMade(ctx context.Context, ref Ref, key digest.Digest, mk Maker) (Blob, error) {
	o, err := s.opener(ref)
	if err != nil {
		return nil, err
	}
	return OpenMade(ctx, o, ref, key, mk)
}

func (s Schemes) opener(ref Ref) (Opener, error) {
	u, err := url.Parse(ref.URL)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", ref.Digest, err)
	}
	o, ok := s[u.Scheme]
	if !ok {
		return nil, fmt.Errorf("open blob %s: URL scheme %q of %s is not supported", ref.Digest, u.Scheme, u.Redacted())
	}
	return o, nil
}
