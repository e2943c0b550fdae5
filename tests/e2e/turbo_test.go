// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// runConvertor runs the convertor on the image "image:oci" of the registry.
func runConvertor(t *testing.T, registry *e2e.Registry, flags ...string) {
	t.Helper()
	args := append([]string{"-r", registry.Host + "/image", "-i", "oci", "--plain", "--dir", t.TempDir()}, flags...)
	cmd := exec.CommandContext(t.Context(), filepath.Join(e2e.Bin(t), "convertor"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// TestTurboRun: an image whose content is in the layers of the original runs as
// the original does, and of neither a layer is downloaded.
func TestTurboRun(t *testing.T) {
	for _, fs := range []string{"ext4", "erofs"} {
		t.Run(fs, func(t *testing.T) {
			gate(t)
			registry := e2e.StartRegistry(t)
			oci := registry.Push(t, e2e.Synthetic(t), "image", "oci")
			runConvertor(t, registry, "--turboOCI", "turbo", "--fstype", fs)
			turbo := registry.Host + "/image:turbo"
			env := start(t, registry)
			if out := env.Ctr("rpull", "--plain-http", turbo); !strings.Contains(out, "7 of 7 layers left in the registry") {
				t.Errorf("rpull said\n%s", out)
			}
			if got := env.Run("overlaybd", turbo); got != "hello\n" {
				t.Errorf("the container said %q", got)
			}
			sameTrees(t, env, oci, turbo)
		})
	}
}

// TestTurboOnDemand: Python says hello long before the original's layers are
// here.
func TestTurboOnDemand(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	img := e2e.Debian(t)
	oci := registry.Push(t, img, "image", "oci")
	runConvertor(t, registry, "--attach")
	env := e2e.Start(t, e2e.Options{Overlaybd: true, Registry: registry, Turbo: "auto = true"})
	registry.Reset()
	env.Ctr("rpull", "--plain-http", oci)
	if got := env.Run("overlaybd", oci); !strings.HasPrefix(got, "hello from Linux") {
		t.Errorf("the container said %q", got)
	}
	served, requests := registry.Served()
	t.Logf("%d of %d bytes in %d requests", served, img.Size(), requests)
	if served > img.Size()/2 {
		t.Errorf("%d of %d bytes were fetched before the first output, want less than half", served, img.Size())
	}
	sameTrees(t, env, oci, oci)
}

// TestConvertOnNode: layers that are pulled become a block image on the node.
func TestConvertOnNode(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	oci := registry.Push(t, e2e.Synthetic(t), "image", "oci")
	env := e2e.Start(t, e2e.Options{Overlaybd: true, Registry: registry, Differ: true})
	if out := env.Ctr("rpull", "--plain-http", "--convert2turbo-oci", oci); !strings.Contains(out, "0 of 7 layers left in the registry") {
		t.Errorf("rpull said\n%s", out)
	}
	kept, err := filepath.Glob(filepath.Join(env.Dir, "snapshotter", "snapshots", "*", "layer.tar"))
	if err != nil || len(kept) != 7 {
		t.Errorf("kept %v, %v; want 7 layers", kept, err)
	}
	registry.Reset()
	if got := env.Run("overlaybd", oci); got != "hello\n" {
		t.Errorf("the container said %q", got)
	}
	if _, requests := registry.Served(); requests != 0 {
		t.Errorf("the registry had %d requests", requests)
	}
	if n := mountsOf(t, filepath.Join(env.Dir, "snapshotter")); n == 0 {
		t.Error("the container ran on no device")
	}
	sameTrees(t, env, oci, oci)
}

// TestAuto: an ordinary image is read on demand as soon as a TurboOCI image is
// attached to it, and pulled as it is without, of which the tool says why.
func TestAuto(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	other := e2e.Platform
	other.Architecture = map[string]string{"amd64": "arm64", "arm64": "amd64"}[other.Architecture]
	both, err := e2e.Merge(t.TempDir(), e2e.Synthetic(t), e2e.SyntheticFor(t, other)) // each has a referrer of its own
	if err != nil {
		t.Fatal(err)
	}
	oci := registry.Push(t, both, "image", "oci")
	pull := func(t *testing.T, want, reason string) {
		t.Helper()
		env := e2e.Start(t, e2e.Options{Overlaybd: true, Registry: registry, Turbo: "auto = true"})
		if out := env.Ctr("rpull", "--plain-http", oci); !strings.Contains(out, want+" of 7 layers left in the registry") {
			t.Errorf("rpull said\n%s", out)
		}
		if got := env.Run("overlaybd", oci); got != "hello\n" {
			t.Errorf("the container said %q", got)
		}
		tool := exec.CommandContext(t.Context(), filepath.Join(e2e.Bin(t), "overlaybd"), "devices",
			"--address", filepath.Join(env.Dir, "b.sock"), "--root", filepath.Join(env.Dir, "snapshotter"))
		out, err := tool.CombinedOutput()
		if err != nil || strings.Contains(string(out), "NOT LAZY") != (reason != "") || !strings.Contains(string(out), reason) {
			t.Errorf("overlaybd devices: %v, want the reason %q in\n%s", err, reason, out)
		}
		sameTrees(t, env, oci, oci)
	}
	t.Run("without", func(t *testing.T) { pull(t, "0", "no block image refers to it") })
	runConvertor(t, registry, "--attach")
	t.Run("with", func(t *testing.T) { pull(t, "7", "") })
}
