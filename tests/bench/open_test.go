// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// TestOpen counts what a new node needs from the pull of an image to a mounted
// file system. One layer: a challenge, a token, a redirect, and bytes, of which
// those that mount it are some. Seventy take more only because there is a limit
// to the requests to one host.
func TestOpen(t *testing.T) {
	t.Run("one layer", func(t *testing.T) {
		steps := open(t, 1)
		if want := []string{"registry 401", "token 200", "registry 307", "storage 206"}; !slices.Equal(steps, want) {
			t.Errorf("steps %q, want %q", steps, want)
		}
	})
	t.Run("70 layers", func(t *testing.T) {
		// 140 reads, 32 at a time, of two steps each, after a challenge and a
		// token are 12 steps; chance adds some. One layer after the other would
		// be more than a hundred.
		if steps := open(t, 70); len(steps) > 20 {
			t.Errorf("%d steps: %q", len(steps), steps)
		}
	})
}

// open returns the longest chain of requests from a pulled image of so many
// layers to a mounted one.
func open(t *testing.T, layers int) (steps []string) {
	t.Helper()
	registry := publish(t, stacked(t, layers))
	// 100 ms: what requests wait for is the network, not the machine.
	p := shaped(t, registry, shape.Profile{Name: "test", RTT: 100 * time.Millisecond})
	node := e2e.Start(t, e2e.Options{Overlaybd: true, Registry: &e2e.Registry{Host: p.Host()}})
	ref := p.Host() + "/image:overlaybd"
	p.Reset()
	node.Ctr("rpull", "--plain-http", ref)
	report(t, "pull", p.Log())
	p.Reset()
	node.Mount("overlaybd", ref)
	log := p.Log()
	report(t, "open and mount", log)
	for _, q := range log.Chain() {
		steps = append(steps, fmt.Sprint(q.Endpoint, " ", q.Status))
	}
	return steps
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
