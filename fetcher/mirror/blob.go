// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Blob is a blob at several places.
type Blob struct {
	o    *Opener
	size int64
	all  []*place // for Close

	mu     sync.Mutex // guards what follows
	places []*place   // best first; at least the last of all
	given  given
	closed bool
	work   sync.WaitGroup // requests of races
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
)

// probe opens the blob at one place, for its size.
func (b *Blob) probe(ctx context.Context) error {
	return b.try(ctx, func(p *place) (*place, error) {
		blob, err := p.open(ctx)
		if err == nil {
			p.blob, b.size = blob, blob.Size()
		}
		return p, err
	})
}

// openAll opens the blob wherever it is not open yet, and forgets the places
// where that fails. One is enough; a blob of no bytes needs no second.
func (b *Blob) openAll(ctx context.Context) error {
	var open []*place
	var last error
	for _, p := range b.places {
		if p.blob == nil && b.size > 0 {
			var blob fetcher.Blob
			p.ref.Size = b.size
			if blob, last = p.open(ctx); last == nil {
				p.blob = blob
			}
		}
		if p.blob != nil {
			open = append(open, p)
		}
	}
	b.all, b.places = open, open
	if len(open) == 0 {
		return last
	}
	return nil
}

// errNegative is no place's fault.
var errNegative = errors.New("read blob: negative offset or length")

// ReadAt reads at the first place that works, and after a failure reads what
// is missing at the next. Without a race: its bytes come with its answer.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative
	}
	done := 0
	err := b.try(ctx, func(at *place) (*place, error) {
		n, err := at.blob.ReadAt(ctx, p[done:], off+int64(done))
		b.note(at, off+int64(done), int64(n))
		done += n
		return at, err
	})
	return done, err
}

// ReadRange streams from the first place that works. The stream breaks where
// its place fails.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 {
		return nil, errNegative
	}
	var won *leg
	err := b.try(ctx, func(at *place) (*place, error) {
		won = b.race(ctx, at, func(ctx context.Context, at *place) (io.ReadCloser, error) {
			return fetcher.ReadRange(ctx, at.blob, off, n)
		})
		return won.at, won.err
	})
	if err != nil {
		return nil, err
	}
	b.note(won.at, off, n)
	return &stream{won, ctx}, nil
}

// Size returns the length of the blob in bytes.
func (b *Blob) Size() int64 { return b.size }

// Close closes the blob at every place.
func (b *Blob) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	var errs []error
	for _, p := range b.all {
		if p.blob != nil {
			errs = append(errs, p.blob.Close())
		}
	}
	b.work.Wait()
	return errors.Join(errs...)
}

// spawn runs f on a goroutine that Close waits for. It reports false once the
// blob is closed.
func (b *Blob) spawn(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.work.Go(f)
	}
	return !b.closed
}

// list returns the places of the blob, best first.
func (b *Blob) list() []*place {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.places
}

// try calls op for one place after the other until one works: first those
// without a penalty, then, because nothing is left to lose, the others, but
// for those that asked to be left alone. op returns whose outcome its error
// is.
func (b *Blob) try(ctx context.Context, op func(*place) (*place, error)) error {
	places := b.list()
	errs := make([]error, len(places))
	attempt := func(i int) (failed bool) {
		var at *place
		at, errs[i] = op(places[i])
		return b.account(ctx, at, errs[i])
	}
	var later []int
	for i, p := range places {
		if !p.ready() {
			later = append(later, i)
		} else if !attempt(i) {
			return errs[i]
		}
	}
	for _, i := range later {
		if errs[i] = places[i].resting(); errs[i] == nil && !attempt(i) {
			return errs[i]
		}
	}
	return verdict(errs)
}

// account notes err, the outcome of a read at a place, and reports whether it
// speaks against the place, so that another may do better.
func (b *Blob) account(ctx context.Context, at *place, err error) (failed bool) {
	if ctx.Err() != nil || errors.Is(err, fs.ErrClosed) {
		return false
	}
	if err == nil || errors.Is(err, io.EOF) {
		at.lift()
		return false
	}
	b.o.count.failures.Add(1)
	if at.blame(err) {
		b.o.count.throttled.Add(1)
	}
	return true
}

// verdict returns the error for a blob that failed everywhere. It is temporary
// when one of errs is, for that place may have the blob: that of the place
// which may be asked again soonest, the last of several.
func verdict(errs []error) error {
	main := len(errs) - 1
	for i := main - 1; i >= 0; i-- {
		if sooner(errs[i], errs[main]) {
			main = i
		}
	}
	err := errs[main]
	for i, e := range errs {
		if i != main {
			err = fmt.Errorf("%w; elsewhere: %v", err, e) //nolint:errorlint // one class only: the main error's
		}
	}
	return err
}

// sooner reports whether there is sense in trying again after a sooner than
// after b.
func sooner(a, b error) bool {
	if !errors.Is(a, fetcher.ErrTemporary) || !errors.Is(b, fetcher.ErrTemporary) {
		return errors.Is(a, fetcher.ErrTemporary)
	}
	return asked(a) < asked(b)
}

// asked returns how long the source of err wants to be left alone.
func asked(err error) time.Duration {
	var after *fetcher.RetryAfterError
	if errors.As(err, &after) {
		return after.After
	}
	return 0
}

// stream is a range read at one place.
type stream struct {
	*leg
	ctx context.Context // the reader's
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.rc.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.b.account(s.ctx, s.at, err)
	}
	return n, err
}

func (s *stream) Close() error { return s.close() }
