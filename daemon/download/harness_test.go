// SPDX-License-Identifier: Apache-2.0

package download_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// The tests run in bubbles of synctest: time passes when nothing else can
// happen, so that they wait for minutes and take none.
const (
	size   = 3<<20 + 1000 // of the tests' layer, bytes
	extent = 256 << 10
	delay  = time.Minute
	pause  = 10 * time.Minute
	ages   = 100 * time.Hour // all there is to happen has happened then
)

// A span is what one request asked for.
type span struct{ off, n int64 }

// A registry gives out layers as the test says.
type registry struct {
	content []byte // of the layer that most tests use
	ref     fetcher.Ref

	mu         sync.Mutex // guards what follows
	layers     map[fetcher.Ref][]byte
	lies       bool // one bit is wrong
	serve      func(ctx context.Context, off, n int64) error
	demand     []span // requests since asked was called
	background []span
	open       int // blobs
}

func newRegistry() *registry {
	r := &registry{layers: make(map[fetcher.Ref][]byte)}
	r.ref, r.content = r.add(1)
	return r
}

// add adds a layer made from seed.
func (r *registry) add(seed uint64) (fetcher.Ref, []byte) {
	content := fetchertest.Content(size, seed)
	dgst := digest.FromBytes(content)
	ref := fetcher.Ref{URL: "http://registry/v2/app/blobs/" + dgst.String(), Digest: dgst, Size: size}
	r.set(func() { r.layers[ref] = content })
	return ref, content
}

func (r *registry) Open(_ context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	content, ok := r.layers[ref]
	if !ok {
		return nil, fetcher.ErrNotFound
	}
	r.open++
	return &remote{r: r, content: content}, nil
}

// set changes what r does.
func (r *registry) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// asked returns what was asked for since the last call.
func (r *registry) asked() (demand, background []span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	demand, background = r.demand, r.background
	r.demand, r.background = nil, nil
	return demand, background
}

func bytesOf(spans []span) (n int64) {
	for _, s := range spans {
		n += s.n
	}
	return n
}

// A remote is a layer in the registry.
type remote struct {
	r       *registry
	content []byte
	once    sync.Once
}

func (b *remote) Size() int64 { return size }

func (b *remote) Close() error {
	b.once.Do(func() { b.r.set(func() { b.r.open-- }) })
	return nil
}

func (b *remote) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := copy(p, b.content[min(off, size):])
	b.r.mu.Lock()
	lies, serve := b.r.lies, b.r.serve
	if limit.Of(ctx) == limit.Background {
		b.r.background = append(b.r.background, span{off, int64(n)})
	} else {
		b.r.demand = append(b.r.demand, span{off, int64(n)})
	}
	b.r.mu.Unlock()
	if serve != nil {
		if err := serve(ctx, off, int64(n)); err != nil {
			return 0, err
		}
	}
	if lies && n > 0 {
		p[n/2] ^= 1
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, ctx.Err()
}

// A node has a Downloader over a cache over a registry.
type node struct {
	t        *testing.T
	dir      string
	registry *registry
	cache    *cache.Cache
	blobs    fetcher.Opener
	log      *lockedBuffer
	*download.Downloader
}

// newNode returns a node; options may be nil.
func newNode(t *testing.T, options func(*download.Options)) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), registry: newRegistry(), log: &lockedBuffer{}}
	var err error
	n.cache, err = cache.Open(cache.Options{Dir: filepath.Join(n.dir, "cache"), MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	n.blobs = fetcher.Schemes{"http": n.cache.Opener(n.registry), "file": file.Opener{}}
	o := download.Options{Blobs: n.blobs, Logger: slog.New(slog.NewTextHandler(n.log, nil)), Delay: delay, Pause: pause, Extent: extent}
	if options != nil {
		options(&o)
	}
	n.Downloader = download.New(o)
	t.Cleanup(func() {
		if err := errors.Join(n.Close(), n.cache.Close()); err != nil {
			t.Error(err)
		}
		if n.registry.open != 0 {
			t.Errorf("%d blobs of the registry are still open", n.registry.open)
		}
	})
	return n
}

// layerDir makes a directory for the layer and returns it.
func (n *node) layerDir(name string) string {
	n.t.Helper()
	dir := filepath.Join(n.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// attach opens the layer that belongs into dir, as an image does: the file if
// there is one.
func (n *node) attach(dir string) (*download.Volume, *device) {
	n.t.Helper()
	return n.attachLayer(dir, n.registry.ref, n.registry.content)
}

func (n *node) attachLayer(dir string, ref fetcher.Ref, content []byte) (*download.Volume, *device) {
	n.t.Helper()
	repo := strings.TrimSuffix(ref.URL, "/"+ref.Digest.String())
	lower := spec.Lower{Dir: dir, Digest: ref.Digest, Size: ref.Size}
	v := n.Volume(&spec.Volume{RepoBlobURL: repo, Lowers: []spec.Lower{lower}}, n.blobs)
	b, err := v.Open(n.t.Context(), fetcher.Ref{URL: "file://" + commit(dir)})
	if errors.Is(err, fetcher.ErrNotFound) {
		b, err = v.Open(n.t.Context(), ref)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	d := &device{Blob: b, t: n.t, content: content}
	n.t.Cleanup(d.detach)
	return v, d
}

func commit(dir string) string { return filepath.Join(dir, "overlaybd.commit") }

// A device reads a layer.
type device struct {
	fetcher.Blob
	t       *testing.T
	content []byte
}

func (d *device) detach() {
	if err := d.Close(); err != nil {
		d.t.Error(err)
	}
}

// want reads n bytes at off and compares.
func (d *device) want(off, n int) {
	d.t.Helper()
	fetchertest.Want(d.t, d, d.content, off, n)
}

// wantFile expects dir to hold the layer, or nothing.
func (n *node) wantFile(dir string, there bool) {
	n.t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	switch {
	case !there && len(names) > 0, len(names) > 1:
		n.t.Errorf("%s holds %v", dir, names)
	case there:
		got, err := os.ReadFile(commit(dir))
		if err != nil || !bytes.Equal(got, n.registry.content) {
			n.t.Errorf("the file is not the layer, %v", err)
		}
	}
}

// wantAsked expects the registry to have been asked for so many bytes.
func (n *node) wantAsked(demand, background int64) {
	n.t.Helper()
	d, b := n.registry.asked()
	if bytesOf(d) != demand || bytesOf(b) != background {
		n.t.Errorf("the registry was asked for %v by readers and %v by downloads, want %d and %d bytes", d, b, demand, background)
	}
}

// logged counts lines with text.
func (n *node) logged(text string) int {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	return strings.Count(n.log.b.String(), text)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func inode(t *testing.T, path string) os.FileInfo {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi
}
