// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestSlowRegistryDelaysNobodyElse: two images attach in parallel, the one at
// the registry that does not answer and the other.
func TestSlowRegistryDelaysNobodyElse(t *testing.T) {
	b := newReal(t)
	r := newRig(t, b, b.plainHTTP)
	b.other.Fault(fetchertest.Fault{Hang: true}) // from the pull on, which has the layer opened
	slowRef, fastRef := b.imageAt(b.other, r, "slow"), b.image(r, "fast")
	done := make(chan error, 1)
	go func() {
		_, err := r.Prepare(t.Context(), "on-slow", slowRef)
		done <- err
	}()
	if err := b.other.Await(t.Context(), fetchertest.Origin, 1); err != nil {
		t.Fatal(err)
	}
	r.wantFile(r.prepare("on-fast", fastRef), "name", "fast")
	select {
	case err := <-done:
		t.Fatalf("the slow one was done first: %v", err)
	default:
	}
	b.other.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.wantFile(r.mounts("on-slow"), "name", "slow")
}

// TestHangingBlockDaemon: whoever needs it waits, in no one's way; the metadata
// are free.
func TestHangingBlockDaemon(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f)
	ref := r.image(f, "app")
	r.prepare("own", ref, snapshotter.LabelWritable, "dir")
	r.prepare("gone", ref, snapshotter.LabelWritable, "dir")

	entered, release := make(chan string, 8), make(chan struct{})
	f.hook = func(ctx context.Context, call, _ string) error {
		entered <- call
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	hung := map[string]func() error{
		"attach": func() error {
			_, err := r.Prepare(t.Context(), "c", ref)
			return err
		},
		"detach": func() error { return errors.Join(r.Commit(t.Context(), "layer", "own"), r.Remove(t.Context(), "gone")) },
	}
	var all sync.WaitGroup
	for name, call := range hung {
		all.Go(func() {
			if err := call(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		<-entered
	}

	// Each of these would wait for ever if a transaction were open.
	r.pull("sha256:other", "", digest.FromString("other"))
	r.prepare("plain", "")
	r.commit("plain-1", "plain")
	r.prepare("on-plain", "plain-1")
	if _, err := r.Stat(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if _, err := r.Usage(t.Context(), "own"); err != nil {
		t.Error(err)
	}
	if _, err := r.Update(t.Context(), snapshots.Info{Name: "plain-1", Labels: map[string]string{"containerd.io/gc.root": "1"}}, "labels"); err != nil {
		t.Error(err)
	}
	r.remove("on-plain")
	if err := r.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	close(release)
	all.Wait()
	r.wantFile(r.mounts("c"), "name", "app")
}

// TestCallerGivesUp on a device that takes its time: nothing of its snapshot
// stays, and the next caller finds the device attached.
func TestCallerGivesUp(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f)
	ref := r.image(f, "app")
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.hook = func(_ context.Context, call, _ string) error {
		if call == "attach" {
			once.Do(func() { close(entered) })
			<-release
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := r.Prepare(ctx, "c", ref)
		done <- err
	}()
	<-entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if _, err := r.Stat(t.Context(), "c"); !errdefs.IsNotFound(err) {
		t.Errorf("the snapshot: got %v, want it gone", err)
	}
	close(release)
	r.wantFile(r.prepare("c", ref), "name", "app")
	if n := f.count("attach"); n != 2 {
		t.Errorf("attached %d times, want once for each caller", n)
	}
}
