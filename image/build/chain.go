// SPDX-License-Identifier: Apache-2.0

// Package build makes block layers of tars, in user space: it unpacks each
// layer of an image onto a file system over the layers below, and writes out what
// changed as a sealed LSMT layer. The content of files may stay in the tar.
//
// A layer is written in one pass, while it is unpacked: first the content of
// its files, in the order of the tar, then the file system's metadata. So it
// can be compressed meanwhile, and a reader that looks up files finds the
// metadata of a layer in one place.
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

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// ErrDiffID reports a layer whose content is not what its diff ID says.
var ErrDiffID = errors.New("content differs from diff ID")

// Options are the choices of a Chain.
type Options struct {
	// Dir takes what a layer being made has of metadata; os.TempDir if empty.
	Dir string

	// VirtualSize is the size of the disk in bytes, where the bottom layer is
	// built; 0 stands for 64 GiB.
	VirtualSize int64

	// FSType is the type of the disk's file system: Ext4, the default, or EROFS.
	FSType string

	// Target leaves the content of files in the tars that layers are made of:
	// a layer has only where it is, besides the metadata, and is read with the
	// uncompressed tar as its target.
	Target bool
}

// defaultSize is the size of a disk, in bytes, as in the reference.
const defaultSize = 64 << 30

// A Chain is the layers of one image, bottom first. It is not safe for
// concurrent use.
type Chain struct {
	opts   Options
	layers []*lsmt.Layer
}

// New returns an empty chain.
func New(opts Options) *Chain {
	if opts.VirtualSize == 0 {
		opts.VirtualSize = defaultSize
	}
	return &Chain{opts: opts}
}

// Close closes all layers.
func (c *Chain) Close() error {
	var errs []error
	for _, l := range c.layers {
		errs = append(errs, l.Close())
	}
	c.layers = nil
	return errors.Join(errs...)
}

// Push puts a block layer on top. The chain owns blob; it stays the caller's
// when Push fails. name is how errors call it.
func (c *Chain) Push(ctx context.Context, blob fetcher.Blob, name string) error {
	l, err := image.OpenLayer(ctx, blob, name)
	if err != nil {
		return err
	}
	c.layers = append(c.layers, l)
	return nil
}

// PushTarget puts a block layer on top that was made with Options.Target. The
// chain owns blob, and target, of which it reads nothing; they stay the caller's
// when PushTarget fails.
func (c *Chain) PushTarget(ctx context.Context, blob, target fetcher.Blob, name string) error {
	l, err := image.OpenTargetLayer(ctx, blob, target, name)
	if err != nil {
		return err
	}
	c.layers = append(c.layers, l)
	return nil
}

// A Layer says what is known of a layer beforehand.
type Layer struct {
	DiffID digest.Digest // of the tar, uncompressed
	Names  lsmt.CommitOptions

	// Index takes the index by which the layer, if it is compressed, can be
	// read at random: of gzidx or zstdidx. Nil if none is wanted.
	Index io.Writer
}

// Build unpacks the layer in r, a tar that may be compressed, over the layers
// so far, and writes what that changes to w as a sealed layer. It reads r to
// its end, and checks that the tar is what its diff ID says: what was written
// before an error is of no use. The chain stays as it is; push the layer to
// build upon it.
//
// r is read ahead: whoever ends ctx must see to it that reading r ends too.
func (c *Chain) Build(ctx context.Context, w io.Writer, r io.Reader, l Layer) error {
	_, err := c.BuildTarget(ctx, w, r, l)
	return err
}

// BuildTarget is Build, and tells what the layer in r is compressed with.
func (c *Chain) BuildTarget(ctx context.Context, w io.Writer, r io.Reader, l Layer) (kind Kind, err error) {
	fsType, err := fsTypeOf(c.opts.FSType)
	if err != nil {
		return "", err
	}
	disk, err := c.disk(w, l)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	content, err := open(r, l.Index != nil)
	if err != nil {
		return "", err
	}
	err = check(content, l.DiffID, func(layer io.Reader) error { return c.unpack(ctx, fsType, disk, layer) })
	if err = errors.Join(err, content.Close()); err != nil {
		return "", err
	}
	if content.index != nil {
		if _, err := content.index.WriteIndex(l.Index); err != nil {
			return "", err
		}
	}
	return content.kind, disk.Finish(ctx)
}

// disk begins a layer on those so far.
func (c *Chain) disk(w io.Writer, l Layer) (*lsmt.Builder, error) {
	lower, err := c.lower()
	if err != nil {
		return nil, err
	}
	opts := lsmt.BuilderOptions{CommitOptions: l.Names, TempDir: c.opts.Dir, Target: c.opts.Target}
	if lower == nil {
		opts.VirtualSize = c.opts.VirtualSize
	}
	return lsmt.Build(w, lower, opts)
}

// Commit writes all layers to w as one.
func (c *Chain) Commit(ctx context.Context, w io.Writer, names lsmt.CommitOptions) error {
	all, err := lsmt.Merge(c.layers)
	if err != nil {
		return err
	}
	return lsmt.Commit(ctx, w, all, names)
}

// lower returns the disk of all layers, nil without any. It is not to be
// closed: that would close the layers.
func (c *Chain) lower() (*lsmt.Stack, error) {
	if len(c.layers) == 0 {
		return nil, nil
	}
	return lsmt.Merge(c.layers)
}

// check has unpack read content, and the rest of it be read, and checks that it
// is what the diff ID says.
func check(content io.Reader, diffID digest.Digest, unpack func(layer io.Reader) error) error {
	h := sha256.New()
	p := newPump(content, h)
	err := unpack(p)
	if err == nil {
		_, err = io.Copy(io.Discard, p) // what lies behind the end of the tar counts
	}
	p.close()
	if err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != diffID {
		return fmt.Errorf("%w: it is %s, not %s", ErrDiffID, got, diffID)
	}
	return nil
}

// unpack applies the tar layer to the file system on disk, which it makes for
// the bottom layer.
func (c *Chain) unpack(ctx context.Context, t fsType, disk backend.Writer, layer io.Reader) error {
	open := t.open
	if len(c.layers) == 0 {
		open = t.create
	}
	fsys, err := open(ctx, disk)
	if err != nil {
		return err
	}
	a := newApplier(ctx, fsys, layer)
	a.target = c.opts.Target
	if err := a.run(); err != nil {
		return err
	}
	return fsys.Sync(ctx)
}
