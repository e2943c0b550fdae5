// SPDX-License-Identifier: Apache-2.0

// Package store holds the contract between the convertor and the places where
// images lie, and the references that name them on a command line. Each of
// layout, archive and remote implements it for one kind of place.
//
// The one thing to know: a blob is pushed when its digest and size are known
// and its bytes can be read again, from any offset. A target can therefore
// leave out what it has, and a broken upload goes on where it broke.
package store

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Source is an image to be read.
type Source interface {
	// Resolve returns the index or manifest that the reference names.
	Resolve(ctx context.Context) (ocispec.Descriptor, error)

	// Open returns the content of a blob or document from its first byte on.
	// It is not verified. What the source does not have is an
	// errdefs.ErrNotFound.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

	Close() error
}

// A Target is an image to be written. It is safe for concurrent use.
type Target interface {
	// Has reports whether the target has the blob or document.
	Has(ctx context.Context, desc ocispec.Descriptor) (bool, error)

	// PushBlob stores a blob of the given digest and size, unless the target
	// has it. Content that is something else is not stored.
	PushBlob(ctx context.Context, desc ocispec.Descriptor, content io.ReaderAt) error

	// Push stores a document under its digest. What it refers to, the
	// children, was stored before.
	Push(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) error

	// Tag gives the document that was stored as desc the name of the target.
	// It is the last step and the only one that others can see.
	Tag(ctx context.Context, desc ocispec.Descriptor) error

	// Close removes what was stored and not tagged, where that is possible.
	Close() error
}
