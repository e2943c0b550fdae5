// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// TestOpen counts what a new node needs from the pull of an image to the first
// byte of a file in it, of a registry with tokens and redirects.
func TestOpen(t *testing.T) {
	t.Run("one layer", func(t *testing.T) {
		// A refusal, a token and the manifest; a redirect and the end of the
		// layer, by which it is opened and mounted; the file. Two of the six
		// open a connection, at two round trips. The config is fetched beside
		// the layer, on a slow machine behind it: that makes one more.
		check(t, open(t, 1), 10, 7, 11)
	})
	t.Run("70 layers", func(t *testing.T) {
		// As with one layer, of each layer a redirect and its end. How many
		// connections there are in time for those is a matter of chance.
		check(t, open(t, 70), 148, 7, 13)
	})
}

// check asserts how many requests there were, and how many depended on one
// another, at most, and what round trips those cost.
func check(t *testing.T, log shape.Log, requests, chain, trips int) {
	t.Helper()
	if len(log) != requests {
		t.Errorf("%d requests, want %d", len(log), requests)
	}
	if c := log.Chain(); len(c) > chain || c.Trips() > trips {
		t.Errorf("%d requests in a row, %d round trips; want %d and %d at most", len(c), c.Trips(), chain, trips)
		for _, q := range c {
			t.Log(q.Endpoint, q.Status, q.Path, q.Range, q.Trips)
		}
	}
}

// open returns the requests of a node that has nothing of an image of so many
// layers, from its pull to the first byte of a file.
func open(t *testing.T, layers int) shape.Log {
	t.Helper()
	registry := publish(t, stacked(t, layers))
	// 250 ms: what requests wait for is the network, not the machine.
	p := shaped(t, registry, shape.Profile{Name: "test", RTT: 250 * time.Millisecond})
	node := e2e.Start(t, e2e.Options{Overlaybd: true, Registry: &e2e.Registry{Host: p.Host()}})
	ref := p.Host() + "/image:overlaybd"
	p.Reset()
	node.Ctr("rpull", "--plain-http", ref)
	pulled := p.Log()
	report(t, "pull", pulled)
	root := node.Mount("overlaybd", ref)
	if n := len(p.Log()) - len(pulled); n != 0 {
		t.Errorf("the mount sent %d requests, which the pull should have", n)
	}
	f, err := os.Open(filepath.Join(root, "file-0"))
	if err == nil {
		_, err = f.Read(make([]byte, 1))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	report(t, "in all", p.Log())
	return p.Log()
}

func report(t *testing.T, what string, l shape.Log) {
	t.Helper()
	s, chain := l.Summarize(time.Time{}, time.Now()), l.Chain()
	t.Logf("%s: %d requests, %d bytes, chain of %d, %d round trips", what, s.Requests, s.Bytes, len(chain), chain.Trips())
}

// stacked returns an image of layers each of which adds a file of 1 MiB.
func stacked(t *testing.T, layers int) e2e.Image {
	t.Helper()
	all := make([]e2e.Layer, layers)
	for i := range all {
		all[i] = noise(i, 1<<20)
	}
	img, err := e2e.Build(t.TempDir(), e2e.Platform, []string{"/none"}, all...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// noise returns the layer of a file of n bytes that do not compress.
func noise(i, n int) e2e.Layer {
	return func(w *tar.Writer) error {
		content := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(content) // it never fails
		h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("file-", i), Mode: 0o644, Size: int64(n)}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
}
