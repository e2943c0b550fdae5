// SPDX-License-Identifier: Apache-2.0

// Package fetcher holds the contract between everything that reads image
// bytes and everything that obtains them: a [Blob] is random-access bytes, an
// [Opener] opens one by location. Each sub-package implements or decorates
// the two for one kind of source, and runs the suite in fetchertest.
//
// The package imports nothing of the project, so that every room may import
// it.
package fetcher

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Blob is an immutable sequence of bytes open for random reads, such as an
// OCI layer in a registry or a sealed layer file on local disk.
//
// A Blob is safe for concurrent use.
type Blob interface {
	// ReadAt reads len(p) bytes into p starting at byte offset off. It follows
	// the io.ReaderAt contract: it returns n < len(p) only with a non-nil
	// error, and io.EOF only at the end of the blob. p must not be retained.
	//
	// Cancelling ctx abandons this call; it need not stop work shared with
	// other callers.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)

	// Size returns the length of the blob in bytes. It does no I/O.
	Size() int64

	// Close releases the blob. Reads in flight fail with fs.ErrClosed.
	Close() error
}

// A RangeReader is a Blob that can stream a range, so that its first bytes are
// usable before its last arrive. Optional: [ReadRange] falls back to ReadAt.
type RangeReader interface {
	// ReadRange returns a reader of exactly n bytes from byte offset off; a
	// short stream ends in io.ErrUnexpectedEOF.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// A Dropper is a Blob that keeps copies of the bytes it read, such as a cached
// blob. A reader whose checksum fails drops the range and reads once more.
type Dropper interface {
	// Drop forgets the copies of bytes [off, off+n), so that the next read
	// asks the source again. It may forget more than that.
	Drop(ctx context.Context, off, n int64) error
}

// An Expecter is a Blob that can be told what will be read next. Optional:
// [Expect] fails for other Blobs.
type Expecter interface {
	// Expect has bytes [off, off+n) fetched, as urgently as for a reader, and
	// returns when a read finds them near. It fetches little besides them.
	// Nothing is to be done for n = 0.
	Expect(ctx context.Context, off, n int64) error
}

// A Spanner is a Blob whose bytes are made in spans, each from its start to its
// end: one byte of a span costs as much as all before it there. Those that were
// read are right, whatever a fault further on in their span does to others.
type Spanner interface {
	// Span returns the span [start, end) that byte off of the blob is in. It
	// does no I/O. Spans follow each other without gaps.
	Span(off int64) (start, end int64)

	// Parts reports whether the beginning of a span costs less than all of it.
	// Otherwise who keeps bytes does well to keep whole spans.
	Parts() bool
}

// A Ref names a blob by location and content.
type Ref struct {
	URL    string        // scheme selects the Opener: https, http, file
	Digest digest.Digest // content address; the cache key
	Size   int64         // bytes; 0 if unknown
}

// An Opener opens blobs of one URL scheme.
type Opener interface {
	Open(ctx context.Context, ref Ref) (Blob, error)
}

// A Maker returns a Blob whose bytes are made of those of src, such as the
// content of a compressed one. It reads little of src, if anything. What it
// returns owns src, which stays the caller's when it fails.
type Maker func(ctx context.Context, src Blob) (Blob, error)

// A Keeper is an Opener that keeps copies of what is made of blobs. Optional:
// [OpenMade] works with any Opener.
type Keeper interface {
	// OpenMade returns what mk makes of the blob of ref. Copies of its bytes
	// are kept under key, and none of the blob's own. Where the size of ref is
	// known, nothing is asked of the blob's source before the first read.
	OpenMade(ctx context.Context, ref Ref, key digest.Digest, mk Maker) (Blob, error)
}

// A Credential is what a registry or bucket wants to see. The zero value means
// anonymous access.
type Credential struct {
	Username string
	Password string

	// IdentityToken is an OAuth2 refresh token, exchanged at the token
	// endpoint in place of a user name and password.
	IdentityToken string
}

// Credentials looks up the credential for a repository or bucket URL. It
// returns the zero Credential for anonymous access.
type Credentials interface {
	Lookup(ctx context.Context, url string) (Credential, error)
}

// Errors that every Opener and Blob reports through errors.Is.
var (
	ErrNotFound     = errors.New("blob not found")
	ErrUnauthorized = errors.New("not authorized")
	ErrTemporary    = errors.New("temporary failure") // worth retrying
)

// A RetryAfterError is an [ErrTemporary] whose source said how long it wants
// to be left alone.
type RetryAfterError struct {
	After time.Duration
	Err   error
}

func (e *RetryAfterError) Error() string { return e.Err.Error() }

// Unwrap makes every RetryAfterError an ErrTemporary.
func (e *RetryAfterError) Unwrap() []error { return []error{ErrTemporary, e.Err} }
