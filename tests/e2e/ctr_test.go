// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// TestRpullOCI: an image that is no block image is pulled as usual, by a
// snapshotter that knows nothing of blocks.
func TestRpullOCI(t *testing.T) {
	env := e2e.Start(t, e2e.Options{})
	ref := env.Registry.Push(t, e2e.Synthetic(t), "synthetic", "oci")
	out := env.Ctr("rpull", "--plain-http", "--snapshotter", "overlayfs", "--label", "a=b", ref)
	for _, want := range []string{"fetch manifest sha256:", "fetch config sha256:", "0 of 7 layers left in the registry"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if got := env.Run("overlayfs", ref); got != "hello\n" {
		t.Errorf("the container said %q", got)
	}
	for name, info := range snapshotsOf(t, env, "overlayfs") {
		if info.Labels["containerd.io/snapshot/image-ref"] != ref {
			t.Errorf("snapshot %s has labels %v", name, info.Labels)
		}
	}
	img, err := env.Client.ImageService().Get(env.Context(), ref)
	if err != nil || img.Labels["a"] != "b" {
		t.Errorf("image %+v, %v", img, err)
	}
	if left := leases(t, env); len(left) != 0 {
		t.Errorf("leases %v", left)
	}
}

// TestRpullAsPull: however rpull gets an image, containerd holds the same
// objects as after a pull of its own.
func TestRpullAsPull(t *testing.T) {
	env := e2e.Start(t, e2e.Options{})
	ref := env.Registry.Push(t, e2e.Synthetic(t), "synthetic", "oci")
	env.Ctr("rpull", "--plain-http", "--snapshotter", "overlayfs", ref)
	other := e2e.Start(t, e2e.Options{Registry: env.Registry})
	other.Pull(ref)
	if diff := cmp.Diff(holdings(t, other, ref), holdings(t, env, ref)); diff != "" {
		t.Errorf("what containerd holds (-pull +rpull):\n%s", diff)
	}
}

// holdings returns the snapshots that containerd has, its content with labels,
// and its image ref.
func holdings(t *testing.T, env *e2e.Env, ref string) map[string]any {
	t.Helper()
	img, err := env.Client.ImageService().Get(env.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{"image": img.Target, "image labels": img.Labels}
	for name, info := range snapshotsOf(t, env, "overlayfs") {
		all["snapshot "+name] = info.Parent
	}
	err = env.Client.ContentStore().Walk(env.Context(), func(i content.Info) error {
		all[i.Digest.String()] = i.Labels
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestObdconvRefused: a snapshotter that makes no block layers is refused, and
// the attempt leaves nothing.
func TestObdconvRefused(t *testing.T) {
	env := e2e.Start(t, e2e.Options{})
	ref := env.Registry.Push(t, e2e.Synthetic(t), "synthetic", "oci")
	env.Pull(ref)
	before := state(t, env, "overlayfs")
	_, err := env.TryCtr(t.Context(), "obdconv", "--snapshotter", "overlayfs", ref, ref+"-obd")
	if err == nil || !strings.Contains(err.Error(), "no block layer") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, state(t, env, "overlayfs")); diff != "" {
		t.Errorf("the conversion left\n%s", diff)
	}
}

// state lists what containerd holds, by name.
func state(t *testing.T, env *e2e.Env, snapshotter string) map[string][]string {
	t.Helper()
	s := map[string][]string{
		"snapshots": slices.Sorted(maps.Keys(snapshotsOf(t, env, snapshotter))),
		"leases":    leases(t, env),
	}
	ctx := env.Context()
	uploads, err := env.Client.ContentStore().ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range uploads {
		s["uploads"] = append(s["uploads"], u.Ref)
	}
	err = env.Client.ContentStore().Walk(ctx, func(i content.Info) error {
		s["content"] = append(s["content"], i.Digest.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(s["content"])
	images, err := env.Client.ImageService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		s["images"] = append(s["images"], i.Name)
	}
	return s
}

func snapshotsOf(t *testing.T, env *e2e.Env, snapshotter string) map[string]snapshots.Info {
	t.Helper()
	all := make(map[string]snapshots.Info)
	err := env.Client.SnapshotService(snapshotter).Walk(env.Context(), func(_ context.Context, i snapshots.Info) error {
		all[i.Name] = i
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func leases(t *testing.T, env *e2e.Env) (ids []string) {
	t.Helper()
	all, err := env.Client.LeasesService().List(env.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		ids = append(ids, l.ID)
	}
	return ids
}
