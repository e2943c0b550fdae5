// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
)

// A listener is a block daemon that notes what it is told to expect.
type listener struct {
	blockapi.Service

	heard chan string
}

func (l *listener) Expect(ctx context.Context, repository string, blobs ...blockapi.Blob) error {
	select {
	case l.heard <- fmt.Sprint(repository, blobs):
	case <-ctx.Done():
	}
	return errors.New("is that so")
}

// listen starts a listener and returns the configuration that names it.
func listen(t *testing.T) (l *listener, config string) {
	t.Helper()
	dir := t.TempDir()
	address := filepath.Join(dir, "b.sock")
	socket, err := new(net.ListenConfig).Listen(t.Context(), "unix", address)
	if err != nil {
		t.Fatal(err)
	}
	l = &listener{heard: make(chan string)}
	s := grpc.NewServer()
	blockapi.NewServer(l).Register(s)
	go s.Serve(socket) //nolint:errcheck // it ends by Stop
	t.Cleanup(s.Stop)
	config = filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("[blockd]\naddress = %q\n[registry]\nplain_http = [\"r.test\"]\n", address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return l, config
}

func heraldOf(t *testing.T, args ...string) *herald {
	t.Helper()
	h, err := newHerald(t.Context(), parsed(t, args...), args[len(args)-1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
	return h
}

// handle passes desc to a handler that finds children in it.
func handle(t *testing.T, h *herald, desc ocispec.Descriptor, children ...ocispec.Descriptor) {
	t.Helper()
	next := images.HandlerFunc(func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error) { return children, nil })
	got, err := h.watch(next).Handle(t.Context(), desc)
	if d := cmp.Diff(children, got); err != nil || d != "" {
		t.Errorf("children of the manifest: %v (-want +got):\n%s", err, d)
	}
}

var (
	plainLayer = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("plain"), Size: 5}
	blockLayer = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("block"), Size: 7,
		Annotations: map[string]string{
			snapshotter.LabelBlobDigest: digest.FromString("block").String(), snapshotter.LabelBlobSize: "7",
		},
	}
	turboLayer = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("turbo"), Size: 9,
		Annotations: map[string]string{
			snapshotter.LabelBlobDigest: digest.FromString("turbo").String(), snapshotter.LabelBlobSize: "9",
			snapshotter.LabelTargetDigest: digest.FromString("target").String(),
		},
	}
)

// TestContentOf: of a TurboOCI layer it is the target that stays in the
// registry.
func TestContentOf(t *testing.T) {
	for _, l := range []ocispec.Descriptor{plainLayer, blockLayer} {
		if got := contentOf(l); got != l.Digest {
			t.Errorf("got %s, want %s", got, l.Digest)
		}
	}
	if got, want := contentOf(turboLayer), digest.FromString("target"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestHerald: the block daemon hears of the repository, and of the layers of
// block images.
func TestHerald(t *testing.T) {
	l, config := listen(t)
	h := heraldOf(t, "--overlaybd-config", config, "r.test/a/b:tag")
	const repository = "http://r.test/v2/a/b/blobs"
	layers := fmt.Sprint(repository, []blockapi.Blob{{Digest: blockLayer.Digest, Size: 7}})

	h.expect()
	if got, want := <-l.heard, repository+"[]"; got != want {
		t.Errorf("of the repository it heard %q, want %q", got, want)
	}
	index := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Data: []byte(`{"manifests":[{}]}`)}
	manifest := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}
	handle(t, h, index, manifest)
	handle(t, h, manifest, plainLayer, turboLayer)
	turbo := blockapi.Blob{Digest: turboLayer.Digest, Size: 9, Target: digest.FromString("target")}
	if got, want := <-l.heard, fmt.Sprint(repository, []blockapi.Blob{turbo}); got != want {
		t.Errorf("of the manifest it heard %q, want %q", got, want)
	}
	handle(t, h, manifest, plainLayer, blockLayer)
	if got := <-l.heard; got != layers {
		t.Errorf("of the manifest it heard %q, want %q", got, layers)
	}

	text, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{plainLayer, blockLayer}})
	if err != nil {
		t.Fatal(err)
	}
	manifest.Data = text
	next := images.HandlerFunc(func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if got := <-l.heard; got != layers {
			t.Errorf("before the manifest was stored it heard %q, want %q", got, layers)
		}
		return []ocispec.Descriptor{blockLayer}, nil
	})
	if _, err := h.watch(next).Handle(t.Context(), manifest); err != nil {
		t.Error(err)
	}
}

// TestHeraldUnheard: a pull does without a block daemon, and one that hangs
// does not keep it from ending.
func TestHeraldUnheard(t *testing.T) {
	_, config := listen(t) // what it hears, nobody takes note of
	missing := filepath.Join(t.TempDir(), "config.toml")
	text := fmt.Sprintf("[blockd]\naddress = %q\n", missing+".sock")
	if err := os.WriteFile(missing, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--overlaybd-config", config, "r.test/a:tag"},
		{"--overlaybd-config", missing, "r.test/a:tag"},
		{"--overlaybd-config", config, "no reference"},
		{"--overlaybd-config", config, "--download-blobs", "r.test/a:tag"},
	} {
		h := heraldOf(t, args...)
		h.expect()
		handle(t, h, ocispec.Descriptor{}, blockLayer)
		if silent := h.client == nil; silent != (len(args) == 4 || args[2] == "no reference") {
			t.Errorf("%v: has nobody to tell: %v", args, silent)
		}
		h.close()
	}
	if _, err := newHerald(t.Context(), parsed(t, "--overlaybd-config", missing+"x", "r.test/a:tag"), "r.test/a:tag"); err == nil {
		t.Error("no error for a configuration that does not exist")
	}
}
