// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// A Writer is an image being written into a layout. Several may write into
// one layout at a time, in one process or many.
type Writer struct {
	*Reader
	dir  string
	name string
	lock *os.File // the directory, locked shared while blobs without a name may be there

	mu     sync.Mutex // guards what follows
	made   []string   // files and directories that did not exist before, in order
	tagged bool
}

var _ store.Target = (*Writer)(nil)

// Create returns a Writer to the layout dir, which is made if need be, of the
// image that will be called name. An empty name takes the place of whatever
// has none.
func Create(dir, name string) (*Writer, error) {
	w := &Writer{Reader: NewReader(os.DirFS(dir), name), dir: dir, name: name}
	err := w.open()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write OCI layout %s: %w", dir, err), w.Close())
	}
	return w, nil
}

func (w *Writer) open() error {
	if err := w.mkdir(w.dir); err != nil {
		return err
	}
	dir, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	w.lock = dir
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_SH); err != nil {
		return err
	}
	return w.mkdir(filepath.Join(w.dir, ocispec.ImageBlobsDir, digest.SHA256.String()))
}

// mkdir makes a directory and its parents, and notes which of them are new.
func (w *Writer) mkdir(dir string) error {
	var missing []string
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, d)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	w.note(slices.Backward(missing))
	return nil
}

func (w *Writer) note(names func(yield func(int, string) bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range names {
		w.made = append(w.made, n)
	}
}

// PushBlob stores a blob.
func (w *Writer) PushBlob(ctx context.Context, desc ocispec.Descriptor, content io.ReaderAt) error {
	if ok, err := w.Has(ctx, desc); ok || err != nil {
		return err
	}
	name, err := blobPath(desc.Digest)
	if err != nil {
		return err
	}
	name = filepath.Join(w.dir, name)
	if err := w.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	err = write(name, func(f *os.File) error {
		return copyVerified(ctx, f, io.NewSectionReader(content, 0, desc.Size), desc)
	})
	if err == nil {
		w.note(slices.All([]string{name}))
	}
	return err
}

// write makes the file name by what fill writes, whole or not at all.
func write(name string, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = fill(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// copyVerified copies what has the digest and size of desc.
func copyVerified(ctx context.Context, w io.Writer, r io.Reader, desc ocispec.Descriptor) error {
	verifier := desc.Digest.Verifier()
	n, err := io.CopyBuffer(io.MultiWriter(w, verifier), cancelable{ctx, r}, make([]byte, 1<<20))
	if err != nil {
		return err
	}
	if n != desc.Size || !verifier.Verified() {
		return fmt.Errorf("%s: the content is something else, of %d bytes", desc.Digest, n)
	}
	return nil
}

// cancelable is a Reader that ends with its context.
type cancelable struct {
	ctx context.Context //nolint:containedctx // lives as long as one copy
	r   io.Reader
}

func (c cancelable) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// Push stores a document as a blob.
func (w *Writer) Push(ctx context.Context, desc ocispec.Descriptor, text []byte, _ []ocispec.Descriptor) error {
	return w.PushBlob(ctx, desc, bytes.NewReader(text))
}

// Tag writes index.json.
func (w *Writer) Tag(_ context.Context, desc ocispec.Descriptor) error {
	// The version file doubles as the lock of index.json: others may be
	// naming images, too.
	version, err := os.OpenFile(filepath.Join(w.dir, ocispec.ImageLayoutFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer version.Close()
	if err := unix.Flock(int(version.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", version.Name(), err)
	}
	if err := w.tag(version, desc); err != nil {
		return fmt.Errorf("name the image %s in %s: %w", w.name, w.dir, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tagged = true
	return nil
}

func (w *Writer) tag(version *os.File, desc ocispec.Descriptor) error {
	if info, err := version.Stat(); err != nil || info.Size() == 0 {
		w.note(slices.All([]string{version.Name()}))
		if _, err := version.WriteString(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`); err != nil {
			return err
		}
	}
	index := filepath.Join(w.dir, ocispec.ImageIndexFile)
	old, err := os.ReadFile(index)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text, err := renamed(old, w.name, desc)
	if err != nil {
		return err
	}
	if err := w.syncBlobs(); err != nil {
		return err
	}
	err = write(index, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
	return errors.Join(err, w.lock.Sync())
}

// syncBlobs makes the names of blobs as durable as their content.
func (w *Writer) syncBlobs() error {
	d, err := os.Open(filepath.Join(w.dir, ocispec.ImageBlobsDir, digest.SHA256.String()))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// renamed returns the index.json old, which may be empty, with desc under name
// in place of what was called so.
func renamed(old []byte, name string, desc ocispec.Descriptor) ([]byte, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if len(old) > 0 {
		if err := json.Unmarshal(old, &index); err != nil {
			return nil, fmt.Errorf("read %s: %w", ocispec.ImageIndexFile, err)
		}
	}
	desc = ocispec.Descriptor{
		MediaType: desc.MediaType, ArtifactType: desc.ArtifactType, Digest: desc.Digest, Size: desc.Size, Platform: desc.Platform,
	}
	if name != "" {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Annotations[ocispec.AnnotationRefName] == name && d.Annotations[annotationName] == ""
	})
	index.Manifests = append(index.Manifests, desc)
	return json.Marshal(index)
}

// Close removes what was written if the image got no name. It leaves it where
// another Writer is at work, who may count on it.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lock == nil {
		return w.remove()
	}
	var err error
	if !w.tagged && unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		err = w.remove()
	}
	err = errors.Join(err, w.lock.Close())
	w.lock, w.made = nil, nil
	return err
}

// remove removes what is new, and of directories those that are empty. w.mu
// is held.
func (w *Writer) remove() error {
	var errs []error
	for _, name := range slices.Backward(w.made) {
		err := os.Remove(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	w.made = nil
	return errors.Join(errs...)
}
