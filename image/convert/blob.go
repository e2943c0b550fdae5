// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// BlobOptions say what the blob of a layer is made like.
type BlobOptions struct {
	ChainID     digest.Digest // of the layer
	Parent      digest.Digest // of the layer below, empty at the bottom
	Compression zfile.Options

	// TempDir holds the blob until it is closed; os.TempDir if empty.
	TempDir string
}

// A Blob is the blob of a layer as registries keep it. That of a native layer
// is compacted, compressed, and wrapped in a tar; that of a turbo layer is a
// compressed tar. It lies in a file without a name, which cannot be left
// behind.
//
// That of a native layer cannot be streamed while it is compressed. The tar header comes first and
// holds the size, so the payload has to be complete before the first byte is
// known, and with it the digest. Compressing twice would do without the file
// at the price of the whole work once more. As it is, a blob that a registry
// has need not be sent, and one that breaks on the way can be sent again.
type Blob struct {
	f      *os.File
	size   int64
	digest digest.Digest
	meta   *Meta // of a turbo layer, else nil
}

var _ io.ReaderAt = (*Blob)(nil)

// A LayerWriter writes a sealed layer with the given names.
type LayerWriter func(w io.Writer, names lsmt.CommitOptions) error

// NewBlob makes the blob of the layer that write writes, and compresses it
// meanwhile. The blob is a function of the layer's bytes and the options.
func NewBlob(write LayerWriter, opts BlobOptions) (*Blob, error) {
	b, err := tempBlob(opts.TempDir)
	if err != nil {
		return nil, err
	}
	if err := b.compress(write, opts); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func tempBlob(dir string) (*Blob, error) {
	f, err := tempFile(dir)
	return &Blob{f: f}, err
}

// tempFile returns a file without a name.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "overlaybd-layer-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (b *Blob) compress(write LayerWriter, opts BlobOptions) error {
	if _, err := b.f.Seek(tarblob.PayloadOffset, io.SeekStart); err != nil {
		return err
	}
	buf := bufio.NewWriterSize(b.f, 1<<20)
	z, err := zfile.NewWriter(buf, opts.Compression)
	if err != nil {
		return err
	}
	if err := write(z, lsmt.CommitOptions{UUID: LayerUUID(opts.ChainID), ParentUUID: LayerUUID(opts.Parent)}); err != nil {
		_ = z.Close() // what is under way in it ends; the error is known
		return err
	}
	if err := errors.Join(z.Close(), buf.Flush()); err != nil {
		return err
	}
	end, err := b.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	payload := end - tarblob.PayloadOffset
	if err := tarblob.WrapInPlace(b.f, payload); err != nil {
		return err
	}
	b.size = tarblob.WrappedSize(payload)
	return b.sum()
}

// WrapFile makes a blob of a layer file that is compressed already: the tar
// that the reference implementation makes of its base layer. TempDir holds it.
func WrapFile(name, tempDir string) (*Blob, error) {
	layer, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer layer.Close()
	info, err := layer.Stat()
	if err != nil {
		return nil, err
	}
	b, err := tempBlob(tempDir)
	if err != nil {
		return nil, err
	}
	if err := b.wrap(layer, info.Size()); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Blob) wrap(layer io.Reader, size int64) (err error) {
	w := tar.NewWriter(b.f)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "overlaybd.commit", Mode: 0o444, Size: size}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(w, layer); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if b.size, err = b.f.Seek(0, io.SeekCurrent); err != nil {
		return err
	}
	return b.sum()
}

// sum computes the digest.
func (b *Blob) sum() error {
	digester := digest.SHA256.Digester()
	_, err := io.CopyBuffer(digester.Hash(), io.NewSectionReader(b.f, 0, b.size), make([]byte, 1<<20))
	b.digest = digester.Digest()
	return err
}

// Descriptor returns the digest and size.
func (b *Blob) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{Digest: b.digest, Size: b.size}
}

// ReadAt reads from the blob.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }

// Close gives up the blob.
func (b *Blob) Close() error {
	err := b.f.Close()
	if b.meta != nil {
		err = errors.Join(err, b.meta.Close())
	}
	return err
}

// Meta returns the content of a turbo layer's blob, which is closed with it.
func (b *Blob) Meta() *Meta { return b.meta }

// Layer returns what the layer of the blob is opened from. It can be read
// until b is closed; closing it does nothing.
func (b *Blob) Layer() fetcher.Blob {
	if b.meta != nil {
		return b.meta.Layer()
	}
	return view{b.f, b.size}
}

// A view is a file that is another's to close.
type view struct {
	f    *os.File
	size int64
}

func (v view) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return v.f.ReadAt(p, off)
}

func (v view) Size() int64 { return v.size }
func (view) Close() error  { return nil }

// CommitBlob makes the blob of a sealed layer, without the data that nothing
// in it leads to. The layer stays the caller's.
func CommitBlob(ctx context.Context, sealed fetcher.Blob, opts BlobOptions) (*Blob, error) {
	layer, err := lsmt.Open(ctx, sealed)
	if err != nil {
		return nil, err
	}
	return NewBlob(func(w io.Writer, names lsmt.CommitOptions) error {
		return lsmt.Commit(ctx, w, layer, names)
	}, opts)
}
