// SPDX-License-Identifier: Apache-2.0

// Package layout reads and writes images in OCI image layouts: directories
// with an index.json and blobs named by their digest.
//
// The one thing to know: a name appears in index.json last and in one step,
// and what was written for a name that never came is removed.
package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// maxIndex bounds index.json, in bytes: some ten thousand images.
const maxIndex = 8 << 20

// annotationName is how containerd names the images of a layout in full.
const annotationName = "io.containerd.image.name"

// A Reader is one image of a layout.
type Reader struct {
	files fs.FS
	name  string
}

var _ store.Source = (*Reader)(nil)

// Open returns the image of the layout dir that has a name, or the only one
// if name is empty.
func Open(dir, name string) (*Reader, error) {
	if _, err := os.Stat(path.Join(dir, ocispec.ImageIndexFile)); err != nil {
		return nil, fmt.Errorf("%s is no OCI layout: %w", dir, err)
	}
	return NewReader(os.DirFS(dir), name), nil
}

// NewReader returns an image of the layout that files hold.
func NewReader(files fs.FS, name string) *Reader { return &Reader{files, name} }

// Resolve looks the name up in index.json.
func (r *Reader) Resolve(context.Context) (ocispec.Descriptor, error) {
	f, _, err := open(r.files, ocispec.ImageIndexFile)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read OCI layout: %w", err)
	}
	defer f.Close() //nolint:errcheck // it is only read
	text, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err == nil && len(text) > maxIndex {
		err = fmt.Errorf("larger than %d bytes", maxIndex)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read %s: %w", ocispec.ImageIndexFile, err)
	}
	return pick(text, r.name)
}

// pick returns the entry of the index.json text that has a name.
func pick(text []byte, name string) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read %s: %w", ocispec.ImageIndexFile, err)
	}
	found := slices.DeleteFunc(slices.Clone(index.Manifests), func(d ocispec.Descriptor) bool { return !named(d, name) })
	// One image under several names is still one.
	found = slices.CompactFunc(found, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest })
	switch {
	case len(found) == 1:
		return found[0], found[0].Digest.Validate()
	case len(found) == 0 && name == "":
		return ocispec.Descriptor{}, fmt.Errorf("%w: the layout has no image", errdefs.ErrNotFound)
	case len(found) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("%w: the layout has no image %q, but %s", errdefs.ErrNotFound, name, names(index.Manifests))
	}
	return ocispec.Descriptor{}, fmt.Errorf("the layout has several images, choose one: %s", names(found))
}

// named reports whether an entry of index.json is called name.
func named(d ocispec.Descriptor, name string) bool {
	full := d.Annotations[annotationName]
	return name == "" || name == d.Annotations[ocispec.AnnotationRefName] || name == d.Digest.String() ||
		name == full || strings.HasSuffix(full, ":"+name)
}

// names lists the first entries for a message.
func names(all []ocispec.Descriptor) string {
	const most = 10
	var b strings.Builder
	for i, d := range all[:min(len(all), most)] {
		name := d.Annotations[ocispec.AnnotationRefName]
		if name == "" {
			name = d.Digest.String()
		}
		fmt.Fprintf(&b, "%s%.100q", strings.Repeat(", ", min(i, 1)), name)
	}
	if len(all) > most {
		fmt.Fprintf(&b, " and %d more", len(all)-most)
	}
	return b.String()
}

// Open opens the blob desc.
func (r *Reader) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	name, err := blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, size, err := open(r.files, name)
	if err != nil {
		return nil, err
	}
	if size != desc.Size {
		return nil, errors.Join(fmt.Errorf("%s has %d bytes, should have %d", name, size, desc.Size), f.Close())
	}
	return f, nil
}

// Has reports whether the layout has the blob or document.
func (r *Reader) Has(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	name, err := blobPath(desc.Digest)
	if err != nil {
		return false, err
	}
	_, err = fs.Stat(r.files, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Close does nothing.
func (r *Reader) Close() error { return nil }

// open opens a regular file and returns its size. Opening anything else might
// wait for ever.
func open(files fs.FS, name string) (fs.File, int64, error) {
	info, err := fs.Stat(files, name)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is no regular file", name)
	}
	f, err := files.Open(name)
	return f, info.Size(), err
}

// blobPath returns where in a layout the content of d is.
func blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", err
	}
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}
