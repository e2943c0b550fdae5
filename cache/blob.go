// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Prefetcher can be asked to have bytes ready.
type Prefetcher interface {
	// Prefetch arranges for bytes [off, off+n) to be cached, yielding to
	// reads. It returns when they are, or when ctx is done.
	Prefetch(ctx context.Context, off, n int64) error
}

// A Blob is a source read through a Cache.
type Blob struct {
	s     *store
	src   fetcher.Blob
	count counters
	ahead readahead
	made  *made // nil if the bytes of src come as they are

	life    context.Context // done when the Blob is closed
	end     context.CancelFunc
	closed  atomic.Bool    // set under s.mu: no fetch starts after
	fetches sync.WaitGroup // those that read src
	once    sync.Once      // for Close
	err     error          // of Close
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
	_ fetcher.Dropper     = (*Blob)(nil)
	_ fetcher.Expecter    = (*Blob)(nil)
	_ Prefetcher          = (*Blob)(nil)
)

func newBlob(s *store, src fetcher.Blob, m *made) *Blob {
	b := &Blob{s: s, src: src, made: m}
	b.life, b.end = context.WithCancel(context.Background())
	return b
}

// Size returns the length of the blob in bytes.
func (b *Blob) Size() int64 { return b.s.geo.size }

// Held returns how many bytes of the blob are on disk, nearly.
func (b *Blob) Held() int64 { return min(b.s.used.Load(), b.Size()) }

// Closed reports whether b is closed.
func (b *Blob) Closed() bool { return b.closed.Load() }

// Stats returns what was read through b.
func (b *Blob) Stats() ReadStats {
	s := b.count.load()
	if b.made != nil {
		s.FetchedBytes += b.made.read.Load()
	}
	return s
}

// ReadAt reads from disk what is there and waits for the source for the rest.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return b.read(ctx, p, off, 0)
}

// read is ReadAt for a reader that will want bytes up to end, if that is more
// than p.
func (b *Blob) read(ctx context.Context, p []byte, off, end int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read blob %s at offset %d: %w", b.s.key, off, fs.ErrInvalid)
	}
	if b.closed.Load() {
		return 0, fmt.Errorf("read blob %s: %w", b.s.key, fs.ErrClosed)
	}
	var eof error
	if off >= b.s.geo.size || int64(len(p)) > b.s.geo.size-off {
		eof = io.EOF
		p = p[:max(b.s.geo.size-off, 0)]
	}
	n := b.s.readHit(p, off)
	b.count.hitBytes.Add(int64(n))
	if n == len(p) {
		b.count.hits.Add(1)
		return n, eof
	}
	k, waited, err := b.readMissing(ctx, p[n:], off+int64(n), end)
	if waited {
		b.count.misses.Add(1)
	} else {
		b.count.hits.Add(1)
	}
	if err != nil {
		return n + k, err
	}
	return n + k, eof
}

// readMissing reads what is not known to be on disk, and reports whether it
// had to wait for the source.
func (b *Blob) readMissing(ctx context.Context, p []byte, off, end int64) (n int, waited bool, err error) {
	for n < len(p) {
		k, err := b.readFetched(ctx, p[n:], off+int64(n), end)
		n += k
		waited = waited || k > 0 || err != nil
		if err != nil {
			return n, waited, err
		}
		k = b.s.readHit(p[n:], off+int64(n))
		b.count.hitBytes.Add(int64(k))
		n += k
	}
	return n, waited, nil
}

// readFetched reads bytes at off from the fetch that brings them. It returns 0
// and no error when they have come to be on disk.
func (b *Blob) readFetched(ctx context.Context, p []byte, off, end int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	stop := off + int64(len(p))
	if b.s.recall(off, stop) {
		return 0, nil
	}
	f, reach, err := b.ask(ctx, off, stop, end)
	if f == nil {
		return 0, err
	}
	defer f.release()
	if off < f.off {
		return 0, nil
	}
	n := max(min(int64(len(p)), reach-off), 1)
	err = f.wait(ctx, b.life, off+n-f.off)
	if errors.Is(err, errAbandoned) {
		return 0, nil // another Blob was closed: ask our own source, if it is not
	}
	if err != nil {
		return 0, err
	}
	return copy(p, f.buf.p[off-f.off:][:n]), nil
}

// ask returns the fetch for a read of bytes [off, stop) by a reader that will
// want those up to end, if that is more, and the end of the bytes it brings. It
// plans for what probably comes next.
func (b *Blob) ask(ctx context.Context, off, stop, end int64) (f *fetch, reach int64, err error) {
	extent, most := b.s.c.link.extent(int64(b.s.c.opts.ExtentSize)), int64(b.s.c.opts.MaxExtent)
	if end > stop {
		return b.first(ctx, want{off: off, end: end, until: max(stop, off+2*most), cut: cut{extent: extent}})
	}
	if b.s.c.degraded.Load() {
		return b.first(ctx, want{off: off, end: stop, until: stop, cut: cut{extent: extent}}) // what is ahead cannot be kept
	}
	if b.s.geo.spanned() {
		return b.askSpans(ctx, off, stop, extent)
	}
	m := b.ahead.advance(off, stop, extent, most, b.s.c.link.dense(most), b.s.coming(off))
	f, reach, err = b.first(ctx, want{off: off, end: m.now, until: m.now, cut: cut{extent: extent, unit: m.unit}})
	if m.from = alignUp(m.from, extent); err != nil || m.from >= min(m.ahead, b.s.geo.size) {
		return f, reach, err
	}
	next, _, _ := b.first(ctx, want{off: m.from, end: m.ahead, until: m.ahead, cut: cut{extent: extent}, low: true})
	if next != nil {
		next.release()
	}
	return f, reach, nil
}

// first returns the first fetch of a plan for w, or nil if all is on disk.
func (b *Blob) first(ctx context.Context, w want) (f *fetch, reach int64, err error) {
	fetches, reach, err := b.plan(ctx, w)
	if len(fetches) == 0 {
		return nil, 0, err
	}
	return fetches[0], reach, nil
}

func (b *Blob) plan(ctx context.Context, w want) (fetches []*fetch, reach int64, err error) {
	fetches, reach, err = b.s.plan(ctx, b, w)
	if err != nil {
		return nil, 0, fmt.Errorf("read blob %s: %w", b.s.key, err)
	}
	return fetches, reach, nil
}

// ReadRange streams bytes [off, off+n), asking for them in few large requests.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("read %d bytes of blob %s at offset %d: %w", n, b.s.key, off, fs.ErrInvalid)
	}
	return &rangeReader{ctx: ctx, b: b, off: off, left: n}, nil
}

// rangeReader is the stream of one range.
type rangeReader struct {
	ctx       context.Context
	b         *Blob
	off, left int64
}

func (r *rangeReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.left)]
	end := min(r.left, max(r.b.Size()-r.off, 0)) + r.off
	n, err := r.b.read(r.ctx, p, r.off, end)
	r.off += int64(n)
	r.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 && len(p) > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

func (r *rangeReader) Close() error { return nil }

// Prefetch arranges for bytes [off, off+n) to be on disk, and returns when
// they are. It fetches the blocks that hold these and no others, since its
// caller knows what will be wanted. It asks for memory after all reads, and
// holds a quarter of it at most. It fails when the source does, and when the
// blocks cannot be kept.
func (b *Blob) Prefetch(ctx context.Context, off, n int64) error {
	return b.bring(ctx, off, n, want{low: true})
}

// Expect is Prefetch for a reader about to come: it asks for memory as reads do.
func (b *Blob) Expect(ctx context.Context, off, n int64) error {
	return b.bring(ctx, off, n, want{})
}

// bring waits until bytes [off, off+n) are on disk, wanted as w says.
func (b *Blob) bring(ctx context.Context, off, n int64, w want) error {
	if off < 0 || n < 0 {
		return fmt.Errorf("prefetch %d bytes of blob %s at offset %d: %w", n, b.s.key, off, fs.ErrInvalid)
	}
	w.off, w.end = off, off+min(n, max(b.Size()-off, 0))
	step := 4 * int64(b.s.c.opts.MaxExtent) // fetched side by side
	for end := w.end; w.off < end; {
		w.end = min(end, w.off+step)
		w.until = w.end
		fetches, _, err := b.plan(ctx, w)
		if err != nil {
			return err
		}
		if len(fetches) == 0 {
			w.off = w.end
			continue
		}
		fetches[0].release() // its bytes are of no interest here
		for _, f := range fetches {
			if err := b.await(ctx, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// await waits until f's blocks are on disk, or were lost in a way that can be
// tried again.
func (b *Blob) await(ctx context.Context, f *fetch) error {
	select {
	case <-f.done:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.life.Done():
		return fmt.Errorf("prefetch blob %s: %w", b.s.key, fs.ErrClosed)
	}
	for _, passing := range []error{errAbandoned, errQueueFull, errDropped} {
		if errors.Is(f.stored, passing) {
			return nil
		}
	}
	return f.stored
}

// Drop forgets the blocks that hold bytes [off, off+n), here and in the
// source.
func (b *Blob) Drop(ctx context.Context, off, n int64) error {
	if off < 0 || n < 0 {
		return fmt.Errorf("drop %d bytes of blob %s at offset %d: %w", n, b.s.key, off, fs.ErrInvalid)
	}
	if b.closed.Load() {
		return fmt.Errorf("drop bytes of blob %s: %w", b.s.key, fs.ErrClosed)
	}
	if n = min(n, b.Size()-off); n <= 0 {
		return nil
	}
	b.s.drop(off, off+n)
	if err := fetcher.Drop(ctx, b.src, off, n); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// Close ends the reads through b and closes the source. What is cached stays.
func (b *Blob) Close() error {
	b.once.Do(func() {
		b.stop()
		b.err = b.src.Close() // before waiting: it ends reads that ignore ctx
		b.fetches.Wait()
		b.s.c.forgetBlob(b)
	})
	return b.err
}

// stop fails all reads and fetches through b.
func (b *Blob) stop() {
	b.s.mu.Lock()
	b.closed.Store(true)
	b.s.mu.Unlock()
	b.end()
}
