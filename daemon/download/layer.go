// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A layer is what the Blobs of one digest have in common: one download, whose
// file is linked into the directory of each.
type layer struct {
	d *Downloader
	key
	have atomic.Int64 // bytes of the file being made
	memo sync.Map     // of readers

	// Guarded by d.mu.
	blobs  []*Blob            // open
	cancel context.CancelFunc // of the download; nil if there is none
	wrong  int                // downloads whose bytes were wrong, at once or later
}

// add returns a Blob of the layer far, read from src, and has it downloaded.
func (d *Downloader) add(v *Volume, far fetcher.Ref, dir string, src *source) *Blob {
	k := key{far.Digest, far.Size}
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.layers[k]
	if l == nil {
		l = &layer{d: d, key: k}
		d.layers[k] = l
	}
	b := newBlob(l, v.next, far, dir, src)
	l.blobs = append(l.blobs, b)
	l.wrong = 0 // the source may have been mended
	l.start()
	return b
}

// leave takes b, which is being closed, out of the layer. With the last, the
// download ends.
func (l *layer) leave(b *Blob) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	l.blobs = slices.DeleteFunc(l.blobs, func(o *Blob) bool { return o == b })
	if len(l.blobs) > 0 || l.d.layers[l.key] != l {
		return
	}
	delete(l.d.layers, l.key)
	if l.cancel != nil {
		l.cancel()
	}
}

// start begins a download unless there is one, or none is to be. d.mu is held.
func (l *layer) start() {
	if l.cancel != nil || l.d.closed || l.d.opts.Off || !l.wanting() {
		return
	}
	ctx, cancel := context.WithCancel(l.d.life)
	l.cancel = cancel
	l.d.work.Go(func() {
		defer cancel()
		(&job{layer: l}).run(ctx)
	})
}

// wanting reports whether a download is of use. d.mu is held.
func (l *layer) wanting() bool {
	return l.wrong < l.d.opts.Tries && slices.ContainsFunc(l.blobs, func(b *Blob) bool { return !b.isLocal() })
}

// over reports whether the download has nothing more to do, and if so takes it
// off the books.
func (l *layer) over() bool {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if l.wanting() {
		return false
	}
	l.cancel = nil
	return true
}

// those returns the Blobs that are local, or those that are not, the one that
// was first least lately first.
func (l *layer) those(local bool) []*Blob {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	var some []*Blob
	for _, b := range l.blobs {
		if b.isLocal() == local {
			some = append(some, b)
		}
	}
	if len(some) > 0 {
		i := slices.Index(l.blobs, some[0])
		l.blobs = append(slices.Delete(l.blobs, i, i+1), some[0])
	}
	return some
}

// distrust gives up the files of the layer, which are one file, or copies, and
// says why once. It is downloaded again.
func (l *layer) distrust(ctx context.Context, why error) error {
	var files []string
	var errs []error
	for _, b := range l.those(true) {
		did, err := b.unsettle(ctx)
		if !did {
			errs = append(errs, err)
			continue
		}
		files = append(files, b.path)
		why = errors.Join(why, err) // the source is read all the same
	}
	if len(files) > 0 {
		l.d.count.damaged.Add(1)
		l.d.opts.Logger.Warn("downloaded layer is damaged and given up", slog.String("digest", l.digest.String()),
			slog.Any("files", files), slog.Any("err", why))
		l.spoilt()
	}
	return errors.Join(errs...)
}

// spoilt counts a download whose bytes were wrong.
func (l *layer) spoilt() {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	l.wrong++
	l.start()
}
