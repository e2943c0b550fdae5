// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert/layout"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// A Reader is one image of an OCI archive.
type Reader struct {
	*layout.Reader
	file *os.File
}

var _ store.Source = (*Reader)(nil)

// Open returns the image of the OCI archive file that has a name, or the only
// one if name is empty.
func Open(file, name string) (*Reader, error) {
	f, found, err := openFiles(file)
	if err != nil {
		return nil, fmt.Errorf("open OCI archive: %w", err)
	}
	return &Reader{layout.NewReader(found, name), f}, nil
}

// Close closes the archive.
func (r *Reader) Close() error { return r.file.Close() }

// A Writer is an OCI archive of one image being written. Its blobs gather in
// a layout beside it until their order in the archive is known, which does
// not depend on when each was ready.
type Writer struct {
	*layout.Writer
	file string // the archive
	dir  string // the layout
}

var _ store.Target = (*Writer)(nil)

// Create returns a Writer to the OCI archive file, of one image called name.
// A file that exists is replaced when the image is complete.
func Create(file, name string) (*Writer, error) {
	dir, err := os.MkdirTemp(filepath.Dir(file), "."+filepath.Base(file)+"-")
	if err != nil {
		return nil, fmt.Errorf("write OCI archive: %w", err)
	}
	w, err := layout.Create(dir, name)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Writer{w, file, dir}, nil
}

// Tag writes the archive.
func (w *Writer) Tag(ctx context.Context, desc ocispec.Descriptor) error {
	if err := w.Writer.Tag(ctx, desc); err != nil {
		return err
	}
	// In the directory that Close removes, so that nothing else has to.
	name := filepath.Join(w.dir, ".tar")
	if err := w.pack(ctx, name); err != nil {
		return fmt.Errorf("write OCI archive: %w", err)
	}
	return os.Rename(name, w.file)
}

// Close removes what is not the archive.
func (w *Writer) Close() error { return errors.Join(w.Writer.Close(), os.RemoveAll(w.dir)) }

// pack moves the layout into the tar called name.
func (w *Writer) pack(ctx context.Context, name string) error {
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(out)
	for _, first := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile} {
		err = errors.Join(err, w.move(tw, first))
	}
	if err == nil {
		err = fs.WalkDir(os.DirFS(w.dir), ocispec.ImageBlobsDir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || ctx.Err() != nil {
				return errors.Join(err, context.Cause(ctx))
			}
			if d.IsDir() {
				return nil
			}
			return w.move(tw, name)
		})
	}
	if err == nil {
		err = errors.Join(tw.Close(), out.Sync())
	}
	return errors.Join(err, out.Close())
}

// move appends a file of the layout to the tar and removes it, so that the
// image is on disk hardly more than once.
func (w *Writer) move(tw *tar.Writer, name string) error {
	path := filepath.Join(w.dir, name)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: info.Size(), ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(tw, f); err != nil {
		return err
	}
	return os.Remove(path)
}
