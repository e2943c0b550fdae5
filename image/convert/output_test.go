// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert"
)

// TestTwoOutputs: one walk makes both images, and each has what its format
// says and its own digests.
func TestTwoOutputs(t *testing.T) {
	s := newStore(t)
	docker := images.MediaTypeDockerSchema2Manifest
	src := s.json(ocispec.MediaTypeImageIndex, ocispec.Index{
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{s.image(docker, "amd64", "a", "b"), s.image(docker, "arm64", "c")},
	})
	c, applied := converter(s)
	known := recalls{}
	c.Outputs = append(c.Outputs, convert.Output{Format: convert.Turbo, Target: c.Outputs[0].Target, FSType: "ext4", Referrer: true, Memory: known})
	fake := c.Builder.(fake) //nolint:errcheck // it is
	fake.formats = []convert.Format{convert.Native, convert.Turbo}
	c.Builder = fake
	made, err := c.Convert(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if len(*applied) != 3 {
		t.Errorf("%d layers were applied, want 3", len(*applied))
	}
	var native, turbo ocispec.Index
	s.read(made[0], &native)
	s.read(made[1], &turbo)
	if native.Subject != nil || turbo.Subject == nil || turbo.Subject.Digest != src.Digest ||
		turbo.ArtifactType != "application/vnd.containerd.overlaybd.turbo.v1+json" {
		t.Errorf("native index %+v, turbo index %+v", native, turbo)
	}
	var n, b ocispec.Manifest
	s.read(native.Manifests[0], &n)
	s.read(turbo.Manifests[0], &b)
	if n.MediaType != docker || n.Layers[0].MediaType != images.MediaTypeDockerSchema2Layer {
		t.Errorf("native manifest %+v", n)
	}
	block := digest.FromString("block a")
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: block, Size: 7, Annotations: map[string]string{
		"containerd.io/snapshot/overlaybd/blob-digest":                 block.String(),
		"containerd.io/snapshot/overlaybd/blob-size":                   "7",
		"containerd.io/snapshot/overlaybd/version":                     "0.1.0-turbo.ociv1",
		"containerd.io/snapshot/overlaybd/turbo-oci/target-digest":     digest.FromString("a").String(),
		"containerd.io/snapshot/overlaybd/turbo-oci/target-media-type": images.MediaTypeDockerSchema2LayerGzip,
	}}
	if diff := cmp.Diff(want, b.Layers[0]); diff != "" {
		t.Error(diff)
	}
	var conf ocispec.Image
	s.read(b.Config, &conf)
	if conf.RootFS.DiffIDs[0] != digest.FromString("unpacked "+block.String()) {
		t.Errorf("diff IDs %v", conf.RootFS.DiffIDs)
	}

	// What is known of one output is built for the other only.
	*fake.outputs = nil
	again, err := c.Convert(t.Context(), src)
	if err != nil || again[0].Digest != made[0].Digest || again[1].Digest != made[1].Digest {
		t.Errorf("made %v, %v; before %v", again, err, made)
	}
	if got := fmt.Sprint(*fake.outputs); got != "[[0] [0]]" {
		t.Errorf("built %s, want the native image twice", got)
	}
}

// recalls is a memory of manifests.
type recalls map[digest.Digest]ocispec.Descriptor

func (r recalls) Recall(_ context.Context, source ocispec.Descriptor) (ocispec.Descriptor, bool, error) {
	was, ok := r[source.Digest]
	return was, ok, nil
}

func (r recalls) Remember(_ context.Context, source, converted ocispec.Descriptor) error {
	r[source.Digest] = converted
	return nil
}

func TestTargetOf(t *testing.T) {
	for _, tt := range []struct{ source, compression, want string }{
		{ocispec.MediaTypeImageLayerGzip, "gzip", ocispec.MediaTypeImageLayerGzip},
		{ocispec.MediaTypeImageLayerGzip, "", ocispec.MediaTypeImageLayer},
		{ocispec.MediaTypeImageLayer, "zstd", ocispec.MediaTypeImageLayerZstd},
		{images.MediaTypeDockerSchema2Layer, "gzip", images.MediaTypeDockerSchema2LayerGzip},
		{images.MediaTypeDockerSchema2LayerForeignGzip, "", images.MediaTypeDockerSchema2Layer},
		{images.MediaTypeDockerSchema2LayerGzip, "zstd", images.MediaTypeDockerSchema2LayerZstd},
	} {
		l := convert.Layer{Source: ocispec.Descriptor{MediaType: tt.source}}
		if got := convert.TargetOf(l, tt.compression).MediaType; got != tt.want {
			t.Errorf("%s that is %q: %s, want %s", tt.source, tt.compression, got, tt.want)
		}
	}
}
