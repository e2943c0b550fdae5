// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// far is how large registries are built: a round trip for TLS, tokens, blobs
// in a store of their own. They answer in a few milliseconds.
var far = shape.Options{TLS: true, Token: true, Redirect: true, Ramp: true, Delay: 5 * time.Millisecond}

// shaped puts the registry on a network.
func shaped(tb testing.TB, registry *e2e.Registry, network shape.Profile) *shape.Proxy {
	tb.Helper()
	opts := far
	opts.Profile = network
	opts.Upstream = &url.URL{Scheme: "http", Host: registry.Host}
	p, err := shape.Start(tb.Context(), opts, "127.0.0.1:0", "127.0.0.2:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// A start is what the first container of an image cost on a node that had
// nothing of it.
type start struct {
	begun  time.Time
	pulled time.Time
	first  time.Time // output of the container
	again  time.Duration

	log     shape.Log // of the requests until then
	size    int64     // of the image's layers, bytes
	daemons usage     // of the project
	node    usage     // of those and containerd
	opened  opening   // zero with overlayfs
}

func (s start) took() time.Duration    { return s.first.Sub(s.begun) }
func (s start) summary() shape.Summary { return s.log.Summarize(s.begun, s.first) }

// coldStart starts a container of the image with that tag in the registry on a
// new node, and once more.
func coldStart(tb testing.TB, p *shape.Proxy, tag string, command []string) (s start) {
	tb.Helper()
	snapshotter := snapshotterOf(tag)
	turn := &scope{TB: tb}
	defer turn.end()
	node := newNode(turn, p, snapshotter)
	daemons, all := processes(tb, node)
	s.daemons, s.node = daemons.usage(tb), all.usage(tb)

	s.begun = time.Now()
	ref := pull(node, p, tag)
	s.pulled = time.Now()
	out := output{first: func() {
		s.first, s.log = time.Now(), p.Log()
		s.daemons, s.node = daemons.usage(tb).since(s.daemons), all.usage(tb).since(s.node)
	}}
	out.run(tb, node, snapshotter, ref, "cold", command)
	begun := time.Now()
	again := output{first: func() { s.again = time.Since(begun) }}
	again.run(tb, node, snapshotter, ref, "again", command)
	s.size = layersSize(tb, node, ref)
	if snapshotter == "overlaybd" {
		s.opened = openingOf(tb, node)
	}
	return s
}

// A scope is a test inside another one. What one start has left on the disk and
// in memory should not weigh on the next.
type scope struct {
	testing.TB
	cleanups []func()
}

// Cleanup registers f to be called at the end of the scope.
func (s *scope) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *scope) end() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}

// newNode returns a node that is in use, so that programs are in its memory.
func newNode(tb testing.TB, p *shape.Proxy, snapshotter string) *e2e.Env {
	tb.Helper()
	node := e2e.Start(tb, e2e.Options{Overlaybd: snapshotter == "overlaybd", Registry: &e2e.Registry{Host: p.Host()}})
	node.Ctr("version")
	p.Reset()
	return node
}

// snapshotterOf returns the snapshotter for the image with that tag: all but one
// are block images.
func snapshotterOf(tag string) string {
	if tag == "overlayfs" {
		return tag
	}
	return "overlaybd"
}

// pull pulls the image with that tag as its snapshotter wants it.
func pull(node *e2e.Env, p *shape.Proxy, tag string) (ref string) {
	ref = p.Host() + "/image:" + tag
	if snapshotterOf(tag) == "overlaybd" {
		node.Ctr("rpull", "--plain-http", ref)
	} else {
		node.Pull(ref)
	}
	return ref
}

// An output is where a container writes to.
type output struct {
	text  strings.Builder
	first func() // called before the first of it is noted
}

func (o *output) Write(p []byte) (int, error) {
	if o.text.Len() == 0 {
		o.first()
	}
	return o.text.Write(p)
}

// run runs a command, whose output begins with "ready".
func (o *output) run(tb testing.TB, node *e2e.Env, snapshotter, ref, id string, command []string) {
	tb.Helper()
	args := append([]string{"run", "--rm", "--snapshotter", snapshotter, ref, id}, command...)
	if err := node.StreamCtr(tb.Context(), o, args...); err != nil {
		tb.Fatal(err)
	}
	o.check(tb, command)
}

func (o *output) check(tb testing.TB, command []string) {
	tb.Helper()
	if got := o.text.String(); !strings.HasPrefix(got, "ready") {
		tb.Fatalf("%v said %q", command, got)
	}
}

func layersSize(tb testing.TB, node *e2e.Env, ref string) (n int64) {
	tb.Helper()
	img, err := node.Client.ImageService().Get(node.Context(), ref)
	if err != nil {
		tb.Fatal(err)
	}
	m, err := images.Manifest(node.Context(), node.Client.ContentStore(), img.Target, platforms.Default())
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }
