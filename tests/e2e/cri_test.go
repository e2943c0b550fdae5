// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// TestCRI: of what a kubelet pulls, block images and those that have one
// attached stay in the registry, others are unpacked, and all of them run.
func TestCRI(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	img := e2e.Synthetic(t)
	oci, block := converted(t, registry, img)
	runConvertor(t, registry, "--turboOCI", "turbo")
	runConvertor(t, registry, "--attach")
	plain := registry.Push(t, img, "plain", "oci") // what is attached is in another repository
	for _, c := range []struct {
		name, ref string
		lazy      bool
	}{
		{"block", block, true},
		{"turbo", registry.Host + "/image:turbo", true},
		{"attached", oci, true},
		{"plain", plain, false},
	} {
		for how, cri := range map[string]e2e.CRI{"local": e2e.CRILocal, "transfer": e2e.CRITransfer} {
			t.Run(c.name+"/"+how, func(t *testing.T) {
				env := e2e.Start(t, e2e.Options{Overlaybd: true, Registry: registry, Turbo: "auto = true", CRI: cri})
				pullCRI(t, env, c.ref)
				checkPulled(t, env, c.ref, c.lazy)
				if got := env.Run("overlaybd", c.ref); got != "hello\n" {
					t.Errorf("the container said %q", got)
				}
				sameTrees(t, env, plain, c.ref)
			})
		}
	}
}

// pullCRI pulls an image as a kubelet does, which then asks whether it is there.
func pullCRI(t *testing.T, env *e2e.Env, ref string) {
	t.Helper()
	cri, spec := env.CRIImages(), &runtime.ImageSpec{Image: ref}
	pulled, err := cri.PullImage(env.Context(), &runtime.PullImageRequest{Image: spec})
	if err != nil {
		t.Fatal(err)
	}
	status, err := cri.ImageStatus(env.Context(), &runtime.ImageStatusRequest{Image: spec})
	if err != nil || status.GetImage().GetId() != pulled.GetImageRef() {
		t.Errorf("pulled %s, but the image's status is %v, %v", pulled.GetImageRef(), status, err)
	}
}

// checkPulled asserts that containerd has the blob of every layer, or if the
// image is read lazily, of none, and that the snapshots say so.
func checkPulled(t *testing.T, env *e2e.Env, ref string, lazy bool) {
	t.Helper()
	ctx, blobs := env.Context(), env.Client.ContentStore()
	img, err := env.Client.ImageService().Get(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := images.Manifest(ctx, blobs, img.Target, platforms.Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range manifest.Layers {
		_, err := blobs.Info(ctx, l.Digest)
		if err != nil && !errdefs.IsNotFound(err) || (err != nil) != lazy {
			t.Errorf("layer %s in the content store: %v", l.Digest, err)
		}
	}
	all := snapshotsOf(t, env, "overlaybd")
	if len(all) != len(manifest.Layers) {
		t.Errorf("%d snapshots of %d layers", len(all), len(manifest.Layers))
	}
	for name, info := range all {
		if remote := info.Labels[snapshotter.LabelRemote] != ""; remote != lazy {
			t.Errorf("snapshot %s has labels %v", name, info.Labels)
		}
	}
}
