// SPDX-License-Identifier: Apache-2.0

// Package registry reads ranges of blobs from OCI registries. A blob's URL is
// https://host/v2/<repository>/blobs/<digest>.
//
// The one thing to know: everything that takes a round trip of its own is
// remembered, so a warm read is exactly one HTTP request. The bearer token is
// shared by all blobs of a repository, and where tokens come from by all
// repositories of a host; the target of a redirect by all who have the same
// blob open, or open it soon after, until it is refused; and the hosts.toml
// directory is read when a blob is opened, never per read.
//
// Nothing here retries, apart from one refresh of a refused token and one new
// resolution of an expired redirect. What may pass by itself is a
// fetcher.ErrTemporary; package fetcher/retry deals with those.
package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"io/fs"
	"net/http"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// Options of an Opener. The zero value reads anonymously.
type Options struct {
	// HostsDir is a directory with one sub-directory per registry, each with
	// a hosts.toml or certificates, as containerd's config_path. Empty means
	// none.
	HostsDir string

	Credentials fetcher.Credentials // nil means anonymous
	UserAgent   string              // default "overlaybd"
	PlainHTTP   []string            // hosts whose https URLs are read by plain HTTP
	TLS         *tls.Config         // where HostsDir has nothing for a host; nil means the system's roots

	rangeget.Timeouts // hosts.toml may say less for DialTimeout; IdleTimeout is between two bytes
}

func (o Options) withDefaults() Options {
	o.Timeouts = o.WithDefaults()
	if o.UserAgent == "" {
		o.UserAgent = "overlaybd"
	}
	return o
}

// An Opener opens blobs of http and https URLs. Blobs of one Opener share
// connections and tokens.
type Opener struct {
	opts Options

	life context.Context // ends with Close; token fetches run under it
	stop context.CancelFunc
	work sync.WaitGroup // token fetches

	mu     sync.Mutex // guards what follows; taken after that of an access
	closed bool
	spaces map[string]*namespace
	grants map[string]*access // by repository URL
	trails map[string]trail   // by blob URL

	challenges map[string]auth.Challenge // by base URL of a host, the last one

	transports []*http.Transport // all there ever were, for Close
}

var _ fetcher.Opener = (*Opener)(nil)

// New returns an Opener. Its Close releases idle connections.
func New(opts Options) *Opener {
	life, stop := context.WithCancel(context.Background())
	return &Opener{
		opts:   opts.withDefaults(),
		life:   life,
		stop:   stop,
		spaces: map[string]*namespace{},
		grants: map[string]*access{},
		trails: map[string]trail{},

		challenges: map[string]auth.Challenge{},
	}
}

// Open opens the blob ref names at the origin host of its registry, or at the
// mirror it names when Mirrors made it. It sends no request when ref.Size is
// known, so that what is wrong with the blob shows at the first read.
func (o *Opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := o.open(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", ref.Digest, err)
	}
	return b, nil
}

func (o *Opener) open(ctx context.Context, ref fetcher.Ref) (*Blob, error) {
	b, err := o.blob(ctx, ref)
	if err != nil || ref.Size > 0 {
		return b, err
	}
	if err := b.Probe(ctx); err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// blob returns the blob ref names, of which nobody has been asked yet.
func (o *Opener) blob(ctx context.Context, ref fetcher.Ref) (*Blob, error) {
	loc, err := parse(ref)
	if err != nil {
		return nil, err
	}
	if o.life.Err() != nil {
		return nil, fs.ErrClosed
	}
	h, err := o.host(ctx, loc)
	if err != nil {
		return nil, err
	}
	return newBlob(o, h, loc, ref.Size), nil
}

// Close releases idle connections and waits for token fetches to end. Blobs
// still open go on as far as they can without a new token.
func (o *Opener) Close() error {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.stop()
	o.work.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range o.transports {
		t.CloseIdleConnections()
	}
	return nil
}

// spawn runs f on a goroutine that Close waits for. It reports false once the
// Opener is closed.
func (o *Opener) spawn(f func()) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.work.Go(f)
	}
	return !o.closed
}

// do sends req and returns its answer, whatever the status.
//
// It does without http.Client, whose errors show URLs and redirect targets.
func (o *Opener) do(ctx, life context.Context, h *host, req *http.Request) (*rangeget.Answer, error) {
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", o.opts.UserAgent)
	}
	w := rangeget.Watch{Header: o.opts.HeaderTimeout, Idle: o.opts.IdleTimeout}
	return w.Do(ctx, life, req.URL, func(ctx context.Context) (*http.Response, error) {
		return h.transport.RoundTrip(req.WithContext(ctx))
	})
}
