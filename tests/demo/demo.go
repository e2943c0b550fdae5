// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// A sample is an image and what its containers say first.
type sample struct {
	name  string
	build func(h *host) e2e.Image
	says  string
}

var (
	debian    = sample{"Debian with Python", func(h *host) e2e.Image { return e2e.Debian(h) }, "hello from Linux"}
	synthetic = sample{"a tiny image", func(h *host) e2e.Image { return e2e.Synthetic(h) }, "hello"}
)

// A demo is one run.
type demo struct {
	h     *host
	image sample

	registry    *e2e.Registry
	plain, lazy start
}

// A start is what it took to get the first output of a new container on a node
// that had nothing of its image.
type start struct {
	size     int64 // of the image's layers as the registry has them, bytes
	fetched  int64 // bytes of blobs that came from the registry by then
	requests int64 // for them
	pull     time.Duration
	first    time.Duration // from the start of the pull to the first output
}

func (d *demo) run() {
	d.say("building the commands")
	e2e.Bin(d.h)
	d.say("making the image: %s", d.image.name)
	img := d.image.build(d.h)
	d.registry = e2e.StartRegistry(d.h)
	oci := d.registry.Push(d.h, img, "demo", "oci")
	block := d.registry.Host + "/demo:block"
	d.say("converting it to a block image and pushing that")
	d.onNode(func(env *e2e.Env) {
		env.Fetch(oci)
		env.Ctr("obdconv", oci, block)
		env.Ctr("images", "push", "--local", "--plain-http", block)
	})
	d.say("plain pull on a node that has nothing, then a container")
	d.onNode(func(env *e2e.Env) {
		d.plain = d.start(env, oci, "overlayfs", "image", "pull", "--local", "--plain-http", "--snapshotter", "overlayfs", oci)
	})
	d.say("lazy pull on a node that has nothing, then a container")
	d.onNode(func(env *e2e.Env) { d.lazy = d.start(env, block, "overlaybd", "rpull", "--plain-http", block) })
	d.say("cleaning up")
}

func (d *demo) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.h.progress, format+"\n", args...)
}

// onNode runs f on a node that is new and gone afterwards.
func (d *demo) onNode(f func(env *e2e.Env)) {
	d.h.node(func(h *host) {
		env := e2e.Start(h, e2e.Options{Overlaybd: true, Registry: d.registry})
		dropPageCache(h)
		f(env)
	})
}

// dropPageCache makes the kernel forget clean file content, so that both
// starts read the programs and the registry's files from disk.
func dropPageCache(h *host) {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		h.Fatal(err)
	}
}

// start pulls ref and runs a container of it.
func (d *demo) start(env *e2e.Env, ref, snapshotter string, pull ...string) start {
	d.registry.Reset()
	begun := time.Now()
	env.Ctr(pull...)
	s := start{pull: time.Since(begun)}
	out := firstWrite{f: func() {
		s.first = time.Since(begun)
		s.fetched, s.requests = d.registry.Served()
	}}
	err := env.StreamCtr(d.h.ctx, &out, "run", "--rm", "--snapshotter", snapshotter, ref, "demo")
	if err != nil {
		d.h.Fatal(err)
	}
	if got := out.text.String(); !strings.HasPrefix(got, d.image.says) {
		d.h.Fatalf("the container said %q, want %q", got, d.image.says)
	}
	s.size = layersSize(d.h, env, ref)
	return s
}

// firstWrite calls f when the first bytes come.
type firstWrite struct {
	text bytes.Buffer
	f    func()
}

func (w *firstWrite) Write(p []byte) (int, error) {
	if w.text.Len() == 0 {
		w.f()
	}
	return w.text.Write(p)
}

func layersSize(h *host, env *e2e.Env, ref string) (n int64) {
	img, err := env.Client.ImageService().Get(env.Context(), ref)
	if err != nil {
		h.Fatal(err)
	}
	m, err := images.Manifest(env.Context(), env.Client.ContentStore(), img.Target, platforms.Default())
	if err != nil {
		h.Fatal(err)
	}
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}

// print writes the table.
func (d *demo) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', tabwriter.AlignRight)
	row := func(name string, cell func(s start) string) {
		fmt.Fprintf(tw, "%s\t%s\t%s\t\n", name, cell(d.plain), cell(d.lazy))
	}
	fmt.Fprintf(tw, "\n%s\tplain OCI\toverlaybd\t\n", d.image.name)
	row("layers in the registry", func(s start) string { return megabytes(s.size) })
	row("fetched before the first output", func(s start) string { return megabytes(s.fetched) })
	row("share of the image", func(s start) string { return fmt.Sprintf("%.0f %%", 100*float64(s.fetched)/float64(s.size)) })
	row("requests", func(s start) string { return fmt.Sprint(s.requests) })
	row("pull", func(s start) string { return seconds(s.pull) })
	row("pull to first output", func(s start) string { return seconds(s.first) })
	return tw.Flush()
}

func megabytes(n int64) string       { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
