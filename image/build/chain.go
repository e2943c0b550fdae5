// SPDX-License-Identifier: Apache-2.0

// Package build makes block layers of tars, in user space: it unpacks each
// layer of an image onto an ext4 file system over the layers below, and hands
// out what changed as a sealed LSMT layer.
//
// The one thing to know: a layer fits only what it was made on. Its blocks are
// edits of the file system that the layers below make up, so a [Chain] builds
// an image from the bottom, and a layer that was made before, pushed onto a
// chain, must come from the same chain of layers and the same options.
package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// ErrDiffID reports a layer whose content is not what its diff ID says.
var ErrDiffID = errors.New("content differs from diff ID")

// Options are the choices of a Chain.
type Options struct {
	// Dir takes the layers while the chain is open. It must exist.
	Dir string

	// VirtualSize is the size of the disk in bytes, where the bottom layer is
	// built; 0 stands for 64 GiB.
	VirtualSize int64
}

// defaultSize is the size of a disk, in bytes, as in the reference.
const defaultSize = 64 << 30

// A Chain is the layers of one image, bottom first. It is not safe for
// concurrent use, but what it has sealed may be read all the time.
type Chain struct {
	opts   Options
	dir    string // below opts.Dir, removed with all in it by Close
	layers []*lsmt.Layer
}

// New returns an empty chain.
func New(opts Options) (*Chain, error) {
	if opts.VirtualSize == 0 {
		opts.VirtualSize = defaultSize
	}
	dir, err := os.MkdirTemp(opts.Dir, "layers-")
	if err != nil {
		return nil, err
	}
	return &Chain{opts: opts, dir: dir}, nil
}

// Close closes all layers and removes the chain's files.
func (c *Chain) Close() error {
	var errs []error
	for _, l := range c.layers {
		errs = append(errs, l.Close())
	}
	c.layers = nil
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// Push puts a block layer that was made before on top. The chain owns blob; it
// stays the caller's when Push fails. name is how errors call it.
func (c *Chain) Push(ctx context.Context, blob fetcher.Blob, name string) error {
	l, err := image.OpenLayer(ctx, blob, name)
	if err != nil {
		return err
	}
	c.layers = append(c.layers, l)
	return nil
}

// Apply unpacks the layer in r, a tar that may be compressed, over the layers
// so far, seals what that changes and puts it on top. It reads r to its end,
// and checks that the tar is what diffID says. An error leaves the chain
// without the layer, and nothing of it on disk.
//
// r is read ahead: whoever ends ctx must see to it that reading r ends too.
func (c *Chain) Apply(ctx context.Context, r io.Reader, diffID digest.Digest) (*Sealed, error) {
	data := filepath.Join(c.dir, fmt.Sprintf("%d.lsmt", len(c.layers)))
	if err := c.build(ctx, data, r, diffID); err != nil {
		return nil, err
	}
	sealed := &Sealed{path: data}
	blob, err := sealed.Open()
	if err != nil {
		return nil, err
	}
	l, err := lsmt.Open(ctx, blob)
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	c.layers = append(c.layers, l)
	return sealed, nil
}

// build makes the sealed layer file data.
func (c *Chain) build(ctx context.Context, data string, r io.Reader, diffID digest.Digest) (err error) {
	index := data + ".index"
	opts := lsmt.CreateOptions{Volatile: true}
	if len(c.layers) == 0 {
		opts.VirtualSize = c.opts.VirtualSize
	}
	w, err := lsmt.Create(data, index, opts)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, w.Close(), os.Remove(index))
		if err != nil {
			err = errors.Join(err, os.Remove(data))
		}
	}()
	disk, err := c.overlay(w)
	if err != nil {
		return err
	}
	if err := c.fill(ctx, disk, r, diffID); err != nil {
		return err
	}
	return w.Seal(ctx)
}

// overlay returns the disk of all layers and w on top. It is not to be closed:
// that would close the layers.
func (c *Chain) overlay(w *lsmt.Writable) (*lsmt.Disk, error) {
	if len(c.layers) == 0 {
		return lsmt.Overlay(nil, w)
	}
	lower, err := lsmt.Merge(c.layers)
	if err != nil {
		return nil, err
	}
	return lsmt.Overlay(lower, w)
}

// fill unpacks r onto disk.
func (c *Chain) fill(ctx context.Context, disk backend.Writer, r io.Reader, diffID digest.Digest) error {
	content, err := Decompress(r)
	if err != nil {
		return err
	}
	h := sha256.New()
	p := newPump(content, h)
	err = c.unpack(ctx, disk, p)
	if err == nil {
		_, err = io.Copy(io.Discard, p) // what lies behind the end of the tar counts
	}
	p.close()
	if err = errors.Join(err, content.Close()); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != diffID {
		return fmt.Errorf("%w: it is %s, not %s", ErrDiffID, got, diffID)
	}
	return nil
}

func (c *Chain) unpack(ctx context.Context, disk backend.Writer, layer io.Reader) error {
	if len(c.layers) == 0 {
		if err := ext4.Format(ctx, disk, ext4.FormatOptions{}); err != nil {
			return err
		}
	}
	fsys, err := ext4.Open(ctx, disk)
	if err != nil {
		return err
	}
	if len(c.layers) == 0 {
		// Format makes it as mkfs does; the image may have one of its own.
		if err := fsys.Remove(ctx, ext4.RootIno, "lost+found"); err != nil {
			return err
		}
	}
	if err := Apply(ctx, fsys, layer); err != nil {
		return err
	}
	return fsys.Sync(ctx)
}

// A Sealed is a layer that a chain has built.
type Sealed struct{ path string }

// Open opens the layer file, uncompressed. It can be opened until the chain is
// closed.
func (s *Sealed) Open() (fetcher.Blob, error) {
	b, err := file.Open(s.path)
	if err != nil {
		return nil, err
	}
	return b, nil
}
