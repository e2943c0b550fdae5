// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

const (
	// maxExpected is how many blobs are expected at a time, and held for
	// whoever attaches them; others are opened when they are attached. Each
	// holds two files, some kilobytes, and its part of a jump table, which is
	// up to 0.7 MB for a layer of a GiB.
	maxExpected = spec.MaxLowers

	// maxWarming is how many are being fetched. It leaves some of the requests
	// that a host gets at a time to those who wait.
	maxWarming = 96

	// maxURL bounds what names a repository, in bytes: as much as a label of
	// containerd's may hold.
	maxURL = 4096

	// reachFrom is from how many bytes of metadata on a layer's target is looked
	// for: it has a hundred times as many. Of small layers most are not read when
	// a container starts, and an image may have many.
	reachFrom = 16 << 10

	// expectTime is how long a blob is expected. Most images are pulled for a
	// container that starts at once.
	expectTime = 5 * time.Minute
)

// Expect implements blockapi.Service.
func (d *Daemon) Expect(_ context.Context, repository string, blobs ...blockapi.Blob) error {
	if len(blobs) > spec.MaxLowers || len(repository) > maxURL {
		return fmt.Errorf("expect %d blobs of a URL of %d bytes: %w", len(blobs), len(repository), errdefs.ErrInvalidArgument)
	}
	// Layers in files need no network, and what there is on disk is nobody's
	// business.
	if !strings.HasPrefix(repository, "https://") && !strings.HasPrefix(repository, "http://") {
		return fmt.Errorf("expect blobs of %q: not an http URL: %w", repository, errdefs.ErrInvalidArgument)
	}
	volumes := make([]*spec.Volume, len(blobs))
	for i, b := range blobs {
		v := &spec.Volume{RepoBlobURL: repository, Lowers: []spec.Lower{{Digest: b.Digest, Size: b.Size, TargetDigest: b.Target}}}
		if err := v.Validate(); err != nil || b.Size == 0 || b.Digest == "" {
			return fmt.Errorf("expect blob %q of %d bytes: %w", string(b.Digest), b.Size, errdefs.ErrInvalidArgument)
		}
		volumes[i] = v
	}
	if len(blobs) == 0 {
		d.warm(repository)
	}
	for i, v := range volumes {
		b, l := blobs[i], v.Lowers[0]
		ref := fetcher.Ref{URL: v.BlobURL(l), Digest: l.Digest, Size: l.Size}
		prepare := openOnce(v)
		if l.TargetDigest != "" {
			prepare = func(ctx context.Context, b *cache.Blob) error { return image.AskWhole(ctx, b) }
			if l.Size >= reachFrom {
				d.reach(fetcher.Ref{URL: v.TargetURL(l), Digest: l.TargetDigest})
			}
		}
		d.expected.begin(ref, func(ctx context.Context, x *expectation) error { return d.expected.hold(ctx, x, prepare) })
		if l.TargetDigest != "" && b.SpecPath != "" {
			d.unpack(b.SpecPath)
		}
	}
	return nil
}

// openOnce returns what fetches of the blob of v's only layer what opening it
// takes.
func openOnce(v *spec.Volume) func(context.Context, *cache.Blob) error {
	return func(ctx context.Context, b *cache.Blob) error {
		img, err := image.Open(ctx, v, loan{b})
		if err != nil {
			return err
		}
		return img.Close()
	}
}

// unpack unpacks the last layer of the spec at path, a TurboOCI one. Those below it
// have been told of before.
func (d *Daemon) unpack(path string) {
	d.expected.begin(fetcher.Ref{URL: "spec:" + path}, func(ctx context.Context, _ *expectation) error {
		v, err := spec.Load(path)
		if err == nil {
			v.Lowers = v.Lowers[max(len(v.Lowers)-1, 0):]
			_, err = image.Localize(ctx, v, d.expected)
		}
		return err
	})
}

// reach prepares for reads of a blob of which nothing is known to be wanted.
func (d *Daemon) reach(ref fetcher.Ref) {
	if d.opts.Reach == nil {
		return
	}
	d.expected.begin(ref, func(ctx context.Context, x *expectation) error {
		if err := d.opts.Reach(ctx, ref); err != nil {
			return err
		}
		x.wait(ctx) // lest it be done once more for the next who expects it
		return nil
	})
}

// warm prepares for reads of the repository whose blobs have this URL.
func (d *Daemon) warm(repository string) {
	if d.opts.Warm == nil {
		return
	}
	d.expected.begin(fetcher.Ref{URL: repository}, func(ctx context.Context, _ *expectation) error {
		return d.opts.Warm(ctx, repository)
	})
}

// warmTargets prepares for reads of the remote targets of v, of which opening
// it asks for nothing: the first read is to find a connection and a token.
func (d *Daemon) warmTargets(v *spec.Volume) {
	warmed := make(map[string]bool)
	for _, l := range v.Lowers {
		repository, _ := strings.CutSuffix(v.TargetURL(l), "/"+l.TargetDigest.String())
		if l.TargetFile == "" && l.TargetDigest != "" && !warmed[repository] {
			d.warm(repository)
			warmed[repository] = true
		}
	}
}

// expectations are blobs that will be wanted soon. Each is open, and what
// opening the layer in it takes is in the cache, or on its way there. The next
// Open of it takes it over.
type expectations struct {
	next  fetcher.Opener
	log   *slog.Logger
	turns chan struct{} // holds a token for each that is being fetched

	life context.Context // ends with close
	end  context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex // guards what follows, and what it points to
	closed bool
	all    map[fetcher.Ref]*expectation
}

// An expectation is in the table until its time is over or its blob is taken.
type expectation struct {
	ref   fetcher.Ref
	blob  *cache.Blob // nil until it is open
	taken chan struct{}
}

var (
	_ fetcher.Opener = (*expectations)(nil)
	_ fetcher.Keeper = (*expectations)(nil)
)

func newExpectations(next fetcher.Opener, log *slog.Logger) *expectations {
	e := &expectations{next: next, log: log, turns: make(chan struct{}, maxWarming), all: make(map[fetcher.Ref]*expectation)}
	e.life, e.end = context.WithCancel(context.Background())
	return e
}

// begin runs do for ref, unless that is expected already, or too much is.
func (e *expectations) begin(ref fetcher.Ref, do func(context.Context, *expectation) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.all[ref] != nil || len(e.all) >= maxExpected {
		return
	}
	x := &expectation{ref: ref, taken: make(chan struct{})}
	e.all[ref] = x
	e.work.Go(func() {
		ctx, cancel := context.WithTimeout(e.life, expectTime)
		defer cancel()
		if err := errors.Join(do(ctx, x), e.forget(x)); err != nil { // whoever attaches it will be told
			e.log.Debug("expectation not met", slog.String("digest", ref.Digest.String()), slog.Any("err", err))
		}
	})
}

// hold opens the blob of x, has fetched what prepare takes of it, and keeps it
// until it is taken or its time is over.
func (e *expectations) hold(ctx context.Context, x *expectation, prepare func(context.Context, *cache.Blob) error) error {
	if err := e.warm(ctx, x, prepare); err != nil {
		return err
	}
	x.wait(ctx)
	return nil
}

// wait waits until x is taken or its time is over.
func (x *expectation) wait(ctx context.Context) {
	select {
	case <-x.taken:
	case <-ctx.Done():
	}
}

func (e *expectations) warm(ctx context.Context, x *expectation, prepare func(context.Context, *cache.Blob) error) error {
	select {
	case e.turns <- struct{}{}:
		defer func() { <-e.turns }()
	case <-x.taken:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	b, err := e.next.Open(ctx, x.ref)
	if err != nil {
		return err
	}
	cached, ok := b.(*cache.Blob)
	if !ok || !e.offer(x, cached) {
		return b.Close()
	}
	return prepare(ctx, cached)
}

// offer makes b the blob of x, unless somebody wanted it before.
func (e *expectations) offer(x *expectation, b *cache.Blob) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.all[x.ref] != x {
		return false
	}
	x.blob = b
	return true
}

// Open returns the blob of ref, which may have been expected.
func (e *expectations) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	if b := e.take(ref); b != nil {
		return b, nil
	}
	return e.next.Open(ctx, ref)
}

// OpenMade opens what mk makes of the blob of ref, of which nobody expects more
// than to reach it.
func (e *expectations) OpenMade(ctx context.Context, ref fetcher.Ref, key digest.Digest, mk fetcher.Maker) (fetcher.Blob, error) {
	e.take(fetcher.Ref{URL: ref.URL, Digest: ref.Digest})
	return fetcher.OpenMade(ctx, e.next, ref, key, mk)
}

// take ends the expectation of ref, and returns its blob if that is open. What
// is being fetched goes on.
func (e *expectations) take(ref fetcher.Ref) *cache.Blob {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.all[ref]
	if x == nil {
		return nil
	}
	delete(e.all, ref)
	close(x.taken)
	return x.blob
}

// forget ends an expectation that nobody took.
func (e *expectations) forget(x *expectation) error {
	e.mu.Lock()
	held := e.all[x.ref] == x
	if held {
		delete(e.all, x.ref)
	}
	e.mu.Unlock()
	if !held || x.blob == nil {
		return nil
	}
	return x.blob.Close()
}

// close ends all expectations, and is the end of expecting.
func (e *expectations) close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.end()
	e.work.Wait()
}

// A loan is an Opener of a blob that stays its lender's to close.
type loan struct{ blob *cache.Blob }

func (l loan) Open(context.Context, fetcher.Ref) (fetcher.Blob, error) { return borrowed{l.blob}, nil }

type borrowed struct{ *cache.Blob }

func (borrowed) Close() error { return nil }
