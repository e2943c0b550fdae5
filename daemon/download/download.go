// SPDX-License-Identifier: Apache-2.0

// Package download brings the layers that devices show to the node, one after
// the other in the background, so that in the end nothing needs the network:
//
//	layers := downloads.Volume(v, blobs) // v's layers, opened through blobs
//	image.Open(ctx, v, layers)
//
// A layer becomes the file overlaybd.commit in the directory that its spec
// names, which is where the reference implementation puts it, and where both
// look for it first. Readers go over to the file without noticing, and back to
// the source where the file turns out to be damaged.
//
// The one thing to know: a file has no name until the SHA-256 of all its bytes
// is that of the layer and they are on disk. Whatever instant the process is
// killed at, there is either the whole layer or nothing at all. So a download
// that was cut off begins again: that costs one layer at most, and what the
// block cache has of it is not fetched twice.
package download

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
)

// Options say what a Downloader does. Blobs and Logger are required.
type Options struct {
	// Blobs opens what is downloaded, best through a cache: what that has is
	// used, and it is not filled.
	Blobs  fetcher.Opener
	Logger *slog.Logger

	// Off has nothing downloaded. Files that are there are used, and given up
	// where they are damaged.
	Off bool

	// Delay is how long after a layer was opened its download begins, at the
	// earliest, and Jitter up to how much longer that takes, by chance.
	Delay, Jitter time.Duration

	// Pause is how long a download that failed is let be. It doubles with each
	// failure in a row, up to an hour. Zero means one minute.
	Pause time.Duration

	// Tries is how many downloads of a layer may turn out to have wrong bytes
	// before no more are made. Zero means 5.
	Tries int

	// Parallel is how many layers are downloaded at once. Zero means one.
	Parallel int

	// Extent is what one request asks for, in bytes. Zero means 4 MiB.
	Extent int

	// MinFree is the space, in bytes, to leave free on a layer's file system.
	MinFree int64
}

const maxPause = time.Hour

// A Downloader downloads the layers of volumes that are open.
type Downloader struct {
	opts  Options
	count counters
	turns chan struct{} // holds a token for each download under way

	life context.Context // of downloads
	end  context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex // guards what follows, and what layers say it guards
	closed bool
	layers map[key]*layer
}

// A key tells layers apart. One digest has one size; specs may lie.
type key struct {
	digest digest.Digest
	size   int64
}

// New returns a Downloader.
func New(opts Options) *Downloader {
	opts.Pause = cmp.Or(opts.Pause, time.Minute)
	opts.Tries = cmp.Or(opts.Tries, 5)
	opts.Parallel = cmp.Or(opts.Parallel, 1)
	opts.Extent = cmp.Or(opts.Extent, 4<<20)
	d := &Downloader{opts: opts, turns: make(chan struct{}, opts.Parallel), layers: make(map[key]*layer)}
	d.life, d.end = context.WithCancel(limit.With(context.Background(), limit.Background))
	return d
}

// Close ends all downloads. Blobs stay open: they are their owners'.
func (d *Downloader) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.end()
	d.work.Wait()
	return nil
}

// delay returns how long to wait before a download.
func (d *Downloader) delay() time.Duration {
	delay := d.opts.Delay
	if d.opts.Jitter > 0 {
		delay += rand.N(d.opts.Jitter)
	}
	return delay
}

// Stats counts what a Downloader did.
type Stats struct {
	Layers       int64 `help:"Layers downloaded, verified and put in place."`
	FetchedBytes int64 `help:"Bytes that came from the source."`
	CachedBytes  int64 `help:"Bytes that the block cache had."`
	Failures     int64 `help:"Downloads that ended without a layer, to be tried again."`
	Mismatches   int64 `help:"Downloads whose bytes were not those of the digest."`
	Damaged      int64 `help:"Downloaded layers given up because their bytes had changed."`
	Active       int64 `help:"Downloads under way." metric:"gauge"`
}

type counters struct {
	layers, fetched, cached, failures, mismatches, damaged, active atomic.Int64
}

// Stats returns what d did since New.
func (d *Downloader) Stats() Stats {
	return Stats{
		Layers:       d.count.layers.Load(),
		FetchedBytes: d.count.fetched.Load(),
		CachedBytes:  d.count.cached.Load(),
		Failures:     d.count.failures.Load(),
		Mismatches:   d.count.mismatches.Load(),
		Damaged:      d.count.damaged.Load(),
		Active:       d.count.active.Load(),
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
