// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A fetch is one request to a source. It stays in its store's table until its
// blocks are on disk, so that no reader ever asks for bytes that are here.
type fetch struct {
	s      *store
	b      *Blob // whose source is read
	off, n int64 // bytes asked for
	ticket *ticket
	buf    *buffer // set once the ticket is granted
	refs   atomic.Int32

	first   block
	end     block // end of the blocks in the table; guarded by s.mu
	dropped bool  // the blocks must not be kept; guarded by s.mu

	landed atomic.Int64 // bytes in buf, written under mu

	mu      sync.Mutex // guards what follows
	waiters []*waiter
	over    bool  // no more bytes will land
	err     error // why, if not all have

	done   chan struct{} // closed when the fetch has left the table
	stored error         // why its blocks are not on disk; set before done
}

// A waiter wants the bytes of a fetch up to upto.
type waiter struct {
	upto  int64
	ready chan struct{}
}

var (
	// errAbandoned ends a fetch whose Blob was closed. Readers that came
	// through other Blobs start another.
	errAbandoned = errors.New("source closed during fetch")

	errQueueFull = errors.New("queue of blocks to write is full")
	errDropped   = errors.New("range dropped during fetch")
)

// maxIdleReads is how often in a row a source may return nothing.
const maxIdleReads = 100

// run fetches and then hands the blocks to the disk writer.
func (f *fetch) run(ctx context.Context) {
	defer f.b.fetches.Done()
	err := f.fill(ctx)
	f.finish(err)
	if f.landed.Load() == 0 {
		f.leave(err)
		return
	}
	f.s.c.enqueue(f)
}

// fill streams the range into f.buf.
func (f *fetch) fill(ctx context.Context) error {
	select {
	case <-f.ticket.ready:
	case <-f.b.life.Done():
		return errAbandoned
	}
	f.buf = f.s.c.pool.get(f.n)
	f.b.count.fetches.Add(1)

	// The first reader's values (priority, trace) go along, its end does not:
	// the bytes are for everyone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.s.c.opts.FetchTimeout)
	defer cancel()
	defer context.AfterFunc(f.b.life, cancel)()
	err := f.stream(ctx)
	switch {
	case err == nil:
		return nil
	case f.b.life.Err() != nil:
		return errAbandoned
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("%w: not complete after %s", fetcher.ErrTemporary, f.s.c.opts.FetchTimeout)
	}
	f.b.count.fetchErrors.Add(1)
	return fmt.Errorf("fetch bytes [%d, %d) of blob %s: %w", f.off, f.off+f.n, f.s.key, err)
}

func (f *fetch) stream(ctx context.Context) error {
	asked := time.Now()
	r, err := fetcher.ReadRange(ctx, f.b.src, f.off, f.n)
	if err != nil {
		return err
	}
	defer r.Close()
	idle := 0
	for landed := int64(0); landed < f.n; {
		n, err := r.Read(f.buf.p[landed:])
		if n > 0 {
			switch idle = 0; {
			case f.b.made != nil: // these are not bytes that the network carried
			case landed == 0:
				f.s.c.link.first(time.Now(), time.Since(asked))
				defer f.s.c.link.last()
			default:
				f.s.c.link.landed(time.Now(), int64(n))
			}
			landed += int64(n)
			f.advance(landed)
			continue // an error comes again if it matters
		}
		if idle++; err == nil && idle > maxIdleReads {
			err = io.ErrNoProgress
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// advance releases the waiters whose bytes have landed.
func (f *fetch) advance(landed int64) {
	if f.b.made == nil {
		f.b.count.fetchedBytes.Add(landed - f.landed.Load())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.landed.Store(landed)
	f.waiters = slices.DeleteFunc(f.waiters, func(w *waiter) bool {
		if w.upto > landed {
			return false
		}
		close(w.ready)
		return true
	})
}

// finish releases all waiters. What landed before err is kept; the rest leaves
// the table first, so that a released reader that tries again starts anew.
func (f *fetch) finish(err error) {
	if err != nil {
		f.s.shorten(f, f.s.geo.whole(f.off+f.landed.Load()))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over, f.err = true, err
	for _, w := range f.waiters {
		close(w.ready)
	}
	f.waiters = nil
}

// wait returns when the first upto bytes have landed, the fetch has failed, or
// ctx or life is done.
func (f *fetch) wait(ctx, life context.Context, upto int64) error {
	w, err := f.join(upto)
	if w == nil {
		return err
	}
	select {
	case <-w.ready:
	case <-ctx.Done():
		f.part(w)
		return ctx.Err()
	case <-life.Done():
		f.part(w)
		return fmt.Errorf("read blob %s: %w", f.s.key, fs.ErrClosed)
	}
	if f.landed.Load() >= upto {
		return nil
	}
	return f.err
}

// join returns a waiter, or nil when there is nothing to wait for.
func (f *fetch) join(upto int64) (*waiter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.landed.Load() >= upto {
		return nil, nil
	}
	if f.over {
		return nil, f.err
	}
	w := &waiter{upto: upto, ready: make(chan struct{})}
	f.waiters = append(f.waiters, w)
	return w, nil
}

func (f *fetch) part(w *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters = slices.DeleteFunc(f.waiters, func(o *waiter) bool { return o == w })
}

// leave takes f out of the table; stored says why its blocks are not on disk.
func (f *fetch) leave(stored error) {
	f.s.shorten(f, f.first)
	f.stored = stored
	close(f.done)
	f.release()
	f.s.c.unref(f.s)
}

// release ends one use of f's memory.
func (f *fetch) release() {
	if f.refs.Add(-1) > 0 {
		return
	}
	if f.buf != nil {
		f.s.c.pool.put(f.buf)
	}
	f.s.c.budget.giveBack(f.ticket)
}
