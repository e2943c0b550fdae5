// SPDX-License-Identifier: Apache-2.0

// Package referrer finds block images that are attached to ordinary ones: by a
// manifest in the same repository whose subject is the ordinary image's. It
// brings to the node what reading one on demand takes, which of a TurboOCI image
// is the metadata of each layer.
//
// The one thing to know: an image is found whole or not at all, and every
// question about it has the same answer for a while. Those who pull it ask once
// per layer, and a block layer fits only the one that it was made on.
package referrer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Registry opens the repository of an image.
type Registry interface {
	Open(ctx context.Context, image string) (Repository, error)
}

// A Repository is one repository of a registry.
type Repository interface {
	// Referrers lists manifests whose subject is the manifest subject; it may
	// list some that are of none of the types, or whose subject is another.
	Referrers(ctx context.Context, subject digest.Digest, types ...string) ([]ocispec.Descriptor, error)

	// Fetch streams a manifest or blob. Its content need not be as desc says,
	// and the size of a manifest may be 0 there, which says nothing.
	Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// ErrNone says that no block image refers to an image.
var ErrNone = errors.New("no block image refers to it")

// An Image is a block image. Its layers are those of the ordinary one, in that
// order.
type Image struct {
	Manifest digest.Digest
	Layers   []Layer
}

// A Layer is one of a block image.
type Layer struct {
	Source     digest.Digest // the ordinary layer that it stands for
	SourceType string        // its media type
	Digest     digest.Digest
	Size       int64 // bytes

	// Files is the directory with the files of a TurboOCI layer, whose content
	// is in Source. It is empty for a layer that has its content itself.
	Files string
}

// Options configure a Finder. Registry and Dir are required.
type Options struct {
	Registry Registry
	Dir      string        // for the files of layers; what it holds is removed
	Timeout  time.Duration // of one search, 10 s if zero

	// Remember is how long an answer holds after it was last given; 10 minutes
	// if zero. Meanwhile the files of its layers stay.
	Remember time.Duration
}

// A Finder looks for block images. It is safe for concurrent use.
type Finder struct {
	opts Options

	life context.Context //nolint:containedctx // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup

	mu    sync.Mutex // guards known
	known map[key]*search
}

type key struct {
	image    string
	manifest digest.Digest
}

// A search is what is known of an image, once done is closed.
type search struct {
	done  chan struct{}
	image *Image
	err   error
	dir   string      // of the files
	timer *time.Timer // ends the memory of it; nil while it goes on
}

// New returns a Finder, which begins with nothing.
func New(opts Options) (*Finder, error) {
	if opts.Timeout <= 0 {
		opts.Timeout = 10 * time.Second
	}
	if opts.Remember <= 0 {
		opts.Remember = 10 * time.Minute
	}
	if err := errors.Join(os.RemoveAll(opts.Dir), os.MkdirAll(opts.Dir, 0o700)); err != nil {
		return nil, fmt.Errorf("directory for attached images: %w", err)
	}
	f := &Finder{opts: opts, known: make(map[key]*search)}
	f.life, f.stop = context.WithCancel(context.Background())
	return f, nil
}

// Close ends all searches and removes all files.
func (f *Finder) Close() error {
	f.stop()
	f.work.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.known {
		if s.timer != nil {
			s.timer.Stop()
		}
	}
	clear(f.known)
	return os.RemoveAll(f.opts.Dir)
}

// Find returns the block image attached to the manifest of image, a reference
// with registry and repository, and ErrNone if there is none. The files of its
// layers stay for as long as the answer is remembered.
func (f *Finder) Find(ctx context.Context, image string, manifest digest.Digest) (*Image, error) {
	s := f.search(key{image, manifest})
	select {
	case <-s.done:
		return s.image, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// search returns the search for k, and begins it if it is the first.
func (f *Finder) search(k key) *search {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.known[k]; s != nil {
		if s.timer != nil && s.timer.Stop() {
			s.timer.Reset(f.opts.Remember)
		}
		return s
	}
	s := &search{done: make(chan struct{})}
	if err := f.life.Err(); err != nil {
		s.err = err
		close(s.done)
		return s
	}
	f.known[k] = s
	f.work.Go(func() { f.run(k, s) })
	return s
}

// run searches, whoever waits for it, as the next layer's pull will too.
func (f *Finder) run(k key, s *search) {
	ctx, cancel := context.WithTimeoutCause(f.life, f.opts.Timeout, fmt.Errorf("no answer within %v", f.opts.Timeout))
	defer cancel()
	s.dir, s.err = os.MkdirTemp(f.opts.Dir, "image-")
	if s.err == nil {
		s.image, s.err = f.find(ctx, k, s.dir)
	}
	if s.err != nil {
		s.image = nil
		if ctx.Err() != nil && f.life.Err() == nil {
			s.err = context.Cause(ctx)
		}
		_ = os.RemoveAll(s.dir) // with nothing in it that anyone knows of
	}
	close(s.done)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.life.Err() == nil {
		s.timer = time.AfterFunc(f.opts.Remember, func() { f.forget(k, s) })
	}
}

// forget removes a search and its files.
func (f *Finder) forget(k key, s *search) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known[k] == s {
		delete(f.known, k)
		_ = os.RemoveAll(s.dir) // Close tries again
	}
}
