// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// TestIdle mounts a hundred images that nobody reads: what the daemons hold and
// do for them.
func TestIdle(t *testing.T) {
	const images = 100
	const idle = 20 * time.Second
	registry := publish(t, many(t, images))
	node := e2e.Start(t, e2e.Options{Overlaybd: true, Registry: registry})
	var index ocispec.Index
	fetchManifest(t, registry, "overlaybd", ocispec.MediaTypeImageIndex, &index)
	refs := make([]string, len(index.Manifests))
	var pulls errgroup.Group
	pulls.SetLimit(4)
	for i, m := range index.Manifests {
		refs[i] = registry.Host + "/image@" + m.Digest.String()
		pulls.Go(func() error {
			_, err := node.TryCtr(t.Context(), "rpull", "--plain-http", refs[i])
			return err
		})
	}
	if err := pulls.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, ref := range refs {
		node.Mount("overlaybd", ref)
	}

	daemons, _ := processes(t, node)
	before := daemons.usage(t)
	<-time.After(idle)
	u := daemons.usage(t)
	cpu := u.since(before).cpu()
	t.Logf("%d images: %d MiB resident, %d MiB in proportion, %v of CPU in %v", len(index.Manifests), u.resident>>20, u.proportional>>20, cpu, idle)
	if len(index.Manifests) != images {
		t.Errorf("%d images", len(index.Manifests))
	}
	if u.resident > 150<<20 {
		t.Errorf("%d bytes are resident", u.resident)
	}
	if cpu > idle/200 {
		t.Errorf("%v of CPU in %v", cpu, idle)
	}
}

// many returns so many small images: they have a layer in common, and one each.
func many(t *testing.T, n int) e2e.Image {
	t.Helper()
	images := make([]e2e.Image, n)
	common := noise(-1, 1<<20)
	for i := range images {
		img, err := e2e.Build(t.TempDir(), e2e.Platform, []string{"/none"}, common, noise(i, 64<<10))
		if err != nil {
			t.Fatal(err)
		}
		images[i] = img
	}
	all, err := e2e.Merge(t.TempDir(), images...)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
