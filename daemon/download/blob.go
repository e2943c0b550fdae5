// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
)

// A Blob is a layer of a volume, read from its source until it is downloaded
// and from its file from then on. Reads take no lock: they load one pointer.
type Blob struct {
	layer *layer
	next  fetcher.Opener // of far
	far   fetcher.Ref
	path  string // of the file

	src atomic.Pointer[source]

	// turn holds a token while somebody changes src, links the file or removes
	// it. So nobody does after Close, when the directory may be removed.
	turn   chan struct{}
	closed bool // guarded by turn
}

// A source is where the bytes of a Blob are.
type source struct {
	fetcher.Blob
	local bool
}

var (
	_ fetcher.Blob    = (*Blob)(nil)
	_ fetcher.Dropper = (*Blob)(nil)
)

// errOther is why a layer cannot be put in place.
var errOther = errors.New("another file is in its place")

func newBlob(l *layer, next fetcher.Opener, far fetcher.Ref, dir string, src *source) *Blob {
	b := &Blob{layer: l, next: next, far: far, path: filepath.Join(dir, fileName), turn: make(chan struct{}, 1)}
	b.src.Store(src)
	return b
}

// Size returns the length of the layer in bytes.
func (b *Blob) Size() int64 { return b.far.Size }

// ReadAt reads from the file if there is one, and from the source if not. It
// begins anew where the source is changed under it.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	src := b.src.Load()
	n, err := src.ReadAt(ctx, p, off)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	return b.readAgain(ctx, src, p, off, n, err)
}

// readAgain goes on after a read from src that failed: it is closed because
// there is a better source, or it is a file that cannot be read.
func (b *Blob) readAgain(ctx context.Context, src *source, p []byte, off int64, n int, err error) (int, error) {
	for ctx.Err() == nil && off >= 0 && err != nil && !errors.Is(err, io.EOF) {
		if src.local && isDamage(err) {
			err = errors.Join(err, b.layer.distrust(ctx, err))
		}
		now := b.src.Load()
		if now == src {
			break
		}
		src = now
		n, err = src.ReadAt(ctx, p, off)
	}
	return n, err
}

// isDamage reports whether a read of a file that fails with err will do so
// again: the file is cut short, or the disk or its file system damaged.
func isDamage(err error) bool {
	for _, e := range []error{io.ErrUnexpectedEOF, unix.EIO, unix.EUCLEAN, unix.EBADMSG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Drop says that bytes read were wrong. If they came from the file, that is
// removed, and reads go back to the source.
func (b *Blob) Drop(ctx context.Context, off, n int64) error {
	src := b.src.Load()
	if !src.local {
		return fetcher.Drop(ctx, src.Blob, off, n)
	}
	return b.layer.distrust(ctx, errors.New("a checksum is wrong"))
}

// An asker can be asked for bytes before they are read, such as a blob in the
// cache.
type asker interface {
	Ask(ctx context.Context, off, n int64) error
}

// Ask passes on to the source. In a file, all is at hand.
func (b *Blob) Ask(ctx context.Context, off, n int64) error {
	if a, ok := b.src.Load().Blob.(asker); ok {
		return a.Ask(ctx, off, n)
	}
	return nil
}

// Expect passes on to the source. A file does not fetch.
func (b *Blob) Expect(ctx context.Context, off, n int64) error {
	return fetcher.Expect(ctx, b.src.Load().Blob, off, n)
}

// Memo returns where readers keep what they have made of the layer's bytes, for
// each other, wherever they read them.
func (b *Blob) Memo() *sync.Map { return &b.layer.memo }

// Close closes the file or the source.
func (b *Blob) Close() error {
	b.layer.leave(b)
	b.turn <- struct{}{}
	defer b.giveTurn()
	if b.closed {
		return nil
	}
	b.closed = true
	return b.src.Load().Close()
}

func (b *Blob) takeTurn(ctx context.Context) error {
	select {
	case b.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Blob) giveTurn() { <-b.turn }

func (b *Blob) isLocal() bool { return b.src.Load().local }

// local returns how many bytes of the layer are on the node: all of them only
// where they have been verified and are read.
func (b *Blob) local() int64 {
	if b.isLocal() {
		return b.Size()
	}
	return min(b.layer.have.Load(), b.Size()-1)
}

// settle has b read its file, after put has put that in place.
// Reads of the source that are under way begin anew.
func (b *Blob) settle(ctx context.Context, put func(path string) error) error {
	if err := b.takeTurn(ctx); err != nil {
		return err
	}
	defer b.giveTurn()
	if b.closed || b.isLocal() {
		return nil
	}
	if err := put(b.path); err != nil {
		return err
	}
	f, err := file.Open(b.path)
	if err != nil {
		return err
	}
	if f.Size() != b.Size() {
		return errors.Join(fmt.Errorf("%s: %w", b.path, errOther), f.Close())
	}
	far := b.src.Swap(&source{f, true})
	if c, ok := far.Blob.(*cache.Blob); ok {
		c.Spare()
	}
	_ = far.Close() // nothing of it is needed any more
	return nil
}

// unsettle has b read its source again and removes its file. It reports whether
// b does so now and did not before.
func (b *Blob) unsettle(ctx context.Context) (did bool, err error) {
	if err := b.takeTurn(ctx); err != nil {
		return false, err
	}
	defer b.giveTurn()
	if b.closed || !b.isLocal() {
		return false, nil
	}
	far, err := b.next.Open(ctx, b.far)
	if err != nil {
		return false, err
	}
	f := b.src.Swap(&source{far, false})
	if err = os.Remove(b.path); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return true, errors.Join(err, f.Close())
}
