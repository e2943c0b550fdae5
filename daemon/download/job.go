// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A job is the download of one layer.
type job struct {
	*layer
	src     fetcher.Blob // kept between tries: it learns which of its places lie
	counted cache.ReadStats
	part    *partial
	said    string // the error that was logged last
}

// errMismatch is why a download is not used.
var errMismatch = errors.New("its bytes are not those of its digest")

// run works until every Blob of the layer is local, or nobody has it open.
func (j *job) run(ctx context.Context) {
	defer j.abandon()
	wait, pause := j.d.delay(), j.d.opts.Pause
	for sleep(ctx, wait) == nil && !j.over() {
		err := j.inTurn(ctx)
		if err == nil {
			wait, pause = 0, j.d.opts.Pause
			continue
		}
		j.report(ctx, err)
		wait, pause = pause, min(2*pause, maxPause)
	}
}

func (j *job) report(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	j.d.count.failures.Add(1)
	if text := err.Error(); text != j.said {
		j.said = text
		j.d.opts.Logger.Warn("layer not downloaded", slog.String("digest", j.digest.String()), slog.Any("err", err))
	}
}

func (j *job) inTurn(ctx context.Context) error {
	select {
	case j.d.turns <- struct{}{}:
		defer func() { <-j.d.turns }()
	case <-ctx.Done():
		return ctx.Err()
	}
	j.d.count.active.Add(1)
	defer j.d.count.active.Add(-1)
	if far := j.those(false); len(far) > 0 {
		return j.bring(ctx, far[0])
	}
	return nil
}

// bring makes b local, by whatever way is shortest, and with it the others.
func (j *job) bring(ctx context.Context, b *Blob) error {
	start := time.Now()
	there := func(string) error { return nil }
	if err := b.settle(ctx, there); !errors.Is(err, fetcher.ErrNotFound) {
		return err
	}
	near := j.those(true)
	if len(near) > 0 && j.place(ctx, b, near[0].path) == nil {
		return nil
	}
	err := j.fetch(ctx, b, near)
	if err != nil {
		return err
	}
	err = j.place(ctx, b, j.part.path())
	j.scrap()
	if err != nil {
		return err
	}
	j.d.count.layers.Add(1)
	j.d.opts.Logger.Info("layer downloaded", slog.String("digest", j.digest.String()), slog.String("path", b.path),
		slog.Int64("size", j.size), slog.Int64("fetched", j.counted.FetchedBytes), slog.Duration("dur", time.Since(start)))
	return nil
}

// place gives the file at old to b, and to the others that it can be given to.
func (j *job) place(ctx context.Context, b *Blob, old string) error {
	into := func(path string) error { return link(old, path) }
	if err := b.settle(ctx, into); err != nil {
		return err
	}
	for _, o := range j.those(false) {
		_ = o.settle(ctx, into) // its own turn comes
	}
	return nil
}

// fetch makes j.part the verified layer, on the file system of b. It copies
// what is near.
func (j *job) fetch(ctx context.Context, b *Blob, near []*Blob) error {
	err := j.fill(ctx, b, near)
	if err == nil && j.part.digest() != j.digest {
		err = j.reject(ctx, near)
	}
	if err == nil {
		err = j.part.flush()
	}
	switch {
	case err == nil, errors.Is(err, fetcher.ErrTemporary): // to be gone on with
	case errors.Is(err, errMismatch):
		j.scrap()
	default:
		j.abandon()
	}
	return err
}

func (j *job) fill(ctx context.Context, b *Blob, near []*Blob) (err error) {
	if j.part == nil {
		if j.part, err = create(filepath.Dir(b.path), j.size, j.d.opts.MinFree); err != nil {
			return err
		}
	}
	read, err := j.open(ctx, b)
	if err != nil {
		return err
	}
	if len(near) > 0 {
		read = near[0].ReadAt
	}
	return j.part.fill(ctx, bounded(read), j.size, make([]byte, min(int64(j.d.opts.Extent), j.size)), j.wrote)
}

// maxRead bounds one read, so that a source that trickles gives up its turn to
// others: it goes on later where it was.
const maxRead = 10 * time.Minute

func bounded(read readFunc) readFunc {
	return func(ctx context.Context, p []byte, off int64) (int, error) {
		bound, cancel := context.WithTimeout(ctx, maxRead)
		defer cancel()
		n, err := read(bound, p, off)
		if err != nil && bound.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: not complete after %v", fetcher.ErrTemporary, maxRead)
		}
		return n, err
	}
}

// open opens what is downloaded, unless it is open, and returns how to read it.
func (j *job) open(ctx context.Context, b *Blob) (readFunc, error) {
	if j.src == nil {
		src, err := j.d.opts.Blobs.Open(ctx, b.far)
		if err != nil {
			return nil, err
		}
		j.src, j.counted = src, cache.ReadStats{}
	}
	if c, ok := j.src.(*cache.Blob); ok {
		return c.ReadOnce, nil
	}
	return j.src.ReadAt, nil
}

// wrote takes note of the first n bytes' being there.
func (j *job) wrote(n int64) {
	j.have.Store(n)
	if c, ok := j.src.(*cache.Blob); ok {
		s := c.Stats()
		j.d.count.fetched.Add(s.FetchedBytes - j.counted.FetchedBytes)
		j.d.count.cached.Add(s.HitBytes - j.counted.HitBytes)
		j.counted = s
	}
}

// reject drops whatever the wrong bytes came from.
func (j *job) reject(ctx context.Context, near []*Blob) error {
	j.d.count.mismatches.Add(1)
	if len(near) > 0 {
		return errors.Join(fmt.Errorf("copy %s: %w", near[0].path, errMismatch), j.distrust(ctx, errMismatch))
	}
	j.spoilt()
	err := fetcher.Drop(ctx, j.src, 0, j.size)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(errMismatch, err)
}

// scrap removes what there is of the file.
func (j *job) scrap() {
	if j.part != nil {
		_ = j.part.close() // and with it the file, unless it has got a name
	}
	j.part = nil
	j.have.Store(0)
}

// abandon lets go of all that the job has.
func (j *job) abandon() {
	j.scrap()
	if j.src != nil {
		_ = j.src.Close() // it was only read
	}
	j.src = nil
}
