// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestPullIsAnnounced: the block daemon hears of each new layer, once, and
// that it does not want to hear changes nothing.
func TestPullIsAnnounced(t *testing.T) {
	need.Root(t)
	f := newFake(t)
	heard := make(chan string)
	f.expect = func(_ context.Context, repository string, blobs []blockapi.Blob) error {
		heard <- fmt.Sprint(repository, blobs)
		return errors.New("not interested")
	}
	r := newRig(t, f)
	a, b := digest.FromString("a"), digest.FromString("b")
	r.pull("sha256:a", "", a)
	r.pull("sha256:a", "", a)
	r.pull("sha256:b", "sha256:a", b)
	const repository = "https://registry.test/v2/library/app/blobs"
	want := []string{
		fmt.Sprint(repository, []blockapi.Blob{{Digest: a, Size: 4096, SpecPath: r.path("1", "block", "config.v1.json")}}),
		fmt.Sprint(repository, []blockapi.Blob{{Digest: b, Size: 4096, SpecPath: r.path("2", "block", "config.v1.json")}}),
	}
	if d := cmp.Diff(want, []string{<-heard, <-heard}); d != "" {
		t.Errorf("announced (-want +got):\n%s", d)
	}
}

// TestAnnouncementHangs: pulls do not wait for a block daemon that does not
// answer, and neither does Close.
func TestAnnouncementHangs(t *testing.T) {
	need.Root(t)
	f := newFake(t)
	f.expect = func(ctx context.Context, _ string, _ []blockapi.Blob) error {
		<-ctx.Done()
		return ctx.Err()
	}
	r := newRig(t, f)
	parent := ""
	for i := range 300 { // more than are kept for it
		ref := fmt.Sprint("sha256:", i)
		r.pull(ref, parent, digest.FromString(ref))
		if parent = ref; i%100 == 0 {
			parent = ""
		}
	}
	r.restart()
}
