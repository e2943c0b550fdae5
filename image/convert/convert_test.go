// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert"
)

// store is a content store on disk that remembers labels.
type store struct {
	content.Store
	t      *testing.T
	labels *labels
}

// labels is the local store's label database, in memory.
type labels struct {
	all map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) { return l.all[d], nil }

func (l *labels) Set(d digest.Digest, m map[string]string) error {
	l.all[d] = m
	return nil
}

func (l *labels) Update(d digest.Digest, m map[string]string) (map[string]string, error) {
	if l.all[d] == nil {
		l.all[d] = make(map[string]string)
	}
	maps.Copy(l.all[d], m)
	return l.all[d], nil
}

func newStore(t *testing.T) store {
	t.Helper()
	l := &labels{all: make(map[digest.Digest]map[string]string)}
	s, err := local.NewLabeledStore(t.TempDir(), l)
	if err != nil {
		t.Fatal(err)
	}
	return store{Store: s, t: t, labels: l}
}

func (s store) add(mediaType, text string) ocispec.Descriptor {
	s.t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}
	if err := content.WriteBlob(s.t.Context(), s, desc.Digest.String(), strings.NewReader(text), desc); err != nil {
		s.t.Fatal(err)
	}
	return desc
}

func (s store) text(desc ocispec.Descriptor) string {
	s.t.Helper()
	text, err := content.ReadBlob(s.t.Context(), s, desc)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

func (s store) json(mediaType string, v any) ocispec.Descriptor {
	s.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.add(mediaType, string(text))
}

// read decodes the document desc into v.
func (s store) read(desc ocispec.Descriptor, v any) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.text(desc)), v); err != nil {
		s.t.Fatal(err)
	}
}

const configText = `{ "architecture" : "%s", "os":"linux",
  "config": {"Env":["A=<&>"],"OnBuild":["RUN true"],"Healthcheck":{"Interval":30000000000}},
  "container_config":{"Shell":["/bin/sh"]}, "x-unknown":[1.50,{}],
  "rootfs": {"type":"layers","diff_ids":%s},
  "history":[{"created_by":"one"},{"empty_layer":true},{"created_by":"two"}] }
`

const manifestText = `{"schemaVersion":2,"mediaType":%q,"config":%s,
	"layers":%s,  "annotations":{"k":"v"},"x-more":1}`

// image adds an image of the given layers.
func (s store) image(manifestType, arch string, layers ...string) ocispec.Descriptor {
	s.t.Helper()
	configType, layerType := ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayer
	if manifestType == images.MediaTypeDockerSchema2Manifest {
		configType, layerType = images.MediaTypeDockerSchema2Config, images.MediaTypeDockerSchema2LayerGzip
	}
	var descs []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, l := range layers {
		descs = append(descs, s.add(layerType, l))
		diffIDs = append(diffIDs, digest.FromString("diff of "+l))
	}
	config := s.add(configType, fmt.Sprintf(configText, arch, marshal(s.t, diffIDs)))
	desc := s.add(manifestType, fmt.Sprintf(manifestText, manifestType, marshal(s.t, config), marshal(s.t, descs)))
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return desc
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// fake packs a layer into "block " and its content.
type fake struct {
	store
	formats []convert.Format // of the converter's outputs
	applied *[]convert.Layer
	outputs *[][]int
	fail    string // diff ID whose pack fails
}

func (f fake) Build(ctx context.Context, img convert.Image, outputs []int) ([][]convert.Packed, error) {
	*f.outputs = append(*f.outputs, slices.Clone(outputs))
	packed, err := convert.InOrder(ctx, img.Layers, f.apply)
	all := make([][]convert.Packed, len(outputs))
	for n, i := range outputs {
		for _, p := range packed {
			if p.Format = f.formats[i]; p.Format == convert.Turbo {
				p.DiffID = digest.FromString("unpacked " + p.Descriptor.Digest.String())
			}
			all[n] = append(all[n], p)
		}
	}
	return all, err
}

func (f fake) apply(ctx context.Context, l convert.Layer) (convert.Pack[convert.Packed], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	*f.applied = append(*f.applied, l)
	text, err := content.ReadBlob(ctx, f, l.Source)
	if err != nil {
		return nil, err
	}
	return func(context.Context) (convert.Packed, error) {
		if l.DiffID.String() == f.fail {
			return convert.Packed{}, errors.New("disk full")
		}
		return convert.Packed{Descriptor: f.add("", "block "+string(text)), Target: convert.TargetOf(l, "gzip")}, nil
	}, nil
}

func converter(s store) (*convert.Converter, *[]convert.Layer) {
	applied := new([]convert.Layer)
	documents := convert.ContentStore(s)
	return &convert.Converter{
		Source: documents, Outputs: []convert.Output{{Target: documents, FSType: "ext4"}},
		Builder: fake{store: s, formats: []convert.Format{convert.Native}, applied: applied, outputs: new([][]int)},
	}, applied
}

// convertOne converts src into one output.
func convertOne(t *testing.T, c *convert.Converter, src ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	made, err := c.Convert(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return made[0]
}

func TestManifest(t *testing.T) {
	for manifestType, layerType := range map[string]string{
		ocispec.MediaTypeImageManifest:        ocispec.MediaTypeImageLayer,
		images.MediaTypeDockerSchema2Manifest: images.MediaTypeDockerSchema2Layer,
	} {
		t.Run(manifestType, func(t *testing.T) {
			s := newStore(t)
			src := s.image(manifestType, "amd64", "a", "b", "b")
			c, applied := converter(s)
			desc := convertOne(t, c, src)
			var old, got ocispec.Manifest
			s.read(src, &old)
			s.read(desc, &got)

			var want []ocispec.Descriptor
			var diffIDs []digest.Digest
			for _, l := range []string{"a", "b", "b"} {
				d := digest.FromString("block " + l)
				diffIDs = append(diffIDs, d)
				want = append(want, ocispec.Descriptor{MediaType: layerType, Digest: d, Size: 7, Annotations: map[string]string{
					"containerd.io/snapshot/overlaybd/blob-digest":  d.String(),
					"containerd.io/snapshot/overlaybd/blob-size":    "7",
					"containerd.io/snapshot/overlaybd/blob-fs-type": "ext4",
					"containerd.io/snapshot/overlaybd/version":      "0.1.0",
				}})
			}
			if diff := cmp.Diff(want, got.Layers); diff != "" {
				t.Error(diff)
			}
			// Every other byte is the source's.
			wantConfig := fmt.Sprintf(configText, "amd64", marshal(t, diffIDs))
			if diff := cmp.Diff(wantConfig, s.text(got.Config)); diff != "" {
				t.Error(diff)
			}
			wantManifest := fmt.Sprintf(manifestText, manifestType, marshal(t, got.Config), marshal(t, want))
			if diff := cmp.Diff(wantManifest, s.text(desc)); diff != "" {
				t.Error(diff)
			}
			if desc.MediaType != manifestType || got.Config.MediaType != old.Config.MediaType {
				t.Errorf("media types %q and %q", desc.MediaType, got.Config.MediaType)
			}
			checkLayers(t, *applied, "a", "b", "b")
			checkReachable(t, s, desc)
		})
	}
}

// checkLayers asserts that a builder was given the layers in order, with the
// right chain IDs.
func checkLayers(t *testing.T, applied []convert.Layer, want ...string) {
	t.Helper()
	var diffIDs []digest.Digest
	parent := digest.Digest("")
	for i, l := range applied {
		diffIDs = append(diffIDs, digest.FromString("diff of "+want[i]))
		chain := identity.ChainID(slices.Clone(diffIDs))
		if l.Index != i || l.Count != len(want) || l.DiffID != diffIDs[i] || l.ChainID != chain || l.Parent != parent {
			t.Errorf("layer %d is %+v", i, l)
		}
		parent = chain
	}
	if len(applied) != len(want) {
		t.Errorf("%d layers were applied, want %d", len(applied), len(want))
	}
}

// checkReachable asserts that a garbage collector that starts at desc finds
// everything the document names.
func checkReachable(t *testing.T, s store, desc ocispec.Descriptor) {
	t.Helper()
	children, err := images.Children(t.Context(), s, desc)
	if err != nil {
		t.Fatal(err)
	}
	refs := slices.Collect(maps.Values(s.labels.all[desc.Digest]))
	for _, c := range children {
		if !slices.Contains(refs, c.Digest.String()) {
			t.Errorf("no label of %s refers to %s", desc.Digest, c.Digest)
		}
		checkReachable(t, s, c)
	}
}

func TestIndex(t *testing.T) {
	s := newStore(t)
	oci := ocispec.MediaTypeImageManifest
	amd, arm := s.image(oci, "amd64", "a", "b"), s.image(oci, "arm64", "c")
	attestation := s.image(oci, "unknown", "in-toto")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	absent := ocispec.Descriptor{MediaType: oci, Digest: digest.FromString("absent"), Size: 6, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}
	hollow := s.image(oci, "ppc64le", "d") // a layer is missing
	if err := s.Delete(t.Context(), digest.FromString("d")); err != nil {
		t.Fatal(err)
	}
	// An index without a media type, as OCI 1.0 has it, within another.
	inner := s.json(ocispec.MediaTypeImageIndex, map[string]any{"schemaVersion": 2, "manifests": []ocispec.Descriptor{arm, absent}, "x": "kept"})
	amd.Annotations = map[string]string{"org.opencontainers.image.ref.name": "kept"}
	outer := s.json(images.MediaTypeDockerSchema2ManifestList, ocispec.Index{
		MediaType: images.MediaTypeDockerSchema2ManifestList,
		Manifests: []ocispec.Descriptor{amd, attestation, absent, hollow, inner, amd},
	})

	t.Run("what is there", func(t *testing.T) {
		c, applied := converter(s)
		desc := convertOne(t, c, outer)
		var got, nested ocispec.Index
		s.read(desc, &got)
		if len(got.Manifests) != 3 || desc.MediaType != images.MediaTypeDockerSchema2ManifestList {
			t.Fatalf("got %s", s.text(desc))
		}
		if got.Manifests[0].Digest != got.Manifests[2].Digest {
			t.Error("one manifest became two")
		}
		if got.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "kept" || got.Manifests[0].Platform.Architecture != "amd64" {
			t.Errorf("entry %+v", got.Manifests[0])
		}
		s.read(got.Manifests[1], &nested)
		if len(nested.Manifests) != 1 || nested.Manifests[0].Platform.Architecture != "arm64" {
			t.Errorf("inner index %s", s.text(got.Manifests[1]))
		}
		if text := s.text(got.Manifests[1]); !strings.Contains(text, `"x":"kept"`) || strings.Contains(text, "mediaType\":\"application/vnd.oci.image.index") {
			t.Errorf("inner index %s", text)
		}
		if len(*applied) != 3 {
			t.Errorf("%d layers were applied, want 3", len(*applied))
		}
		checkReachable(t, s, desc)
	})
	t.Run("one platform", func(t *testing.T) {
		c, applied := converter(s)
		c.Platform = platforms.Only(platforms.MustParse("linux/arm64"))
		if _, err := c.Convert(t.Context(), outer); err != nil {
			t.Fatal(err)
		}
		checkLayers(t, *applied, "c")
	})
	t.Run("a platform without its content", func(t *testing.T) {
		c, _ := converter(s)
		c.Platform = platforms.Only(platforms.MustParse("linux/s390x"))
		if _, err := c.Convert(t.Context(), outer); !errdefs.IsNotFound(err) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no such platform", func(t *testing.T) {
		c, _ := converter(s)
		c.Platform = platforms.Only(platforms.MustParse("windows/amd64"))
		_, err := c.Convert(t.Context(), outer)
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "for linux/amd64, linux/arm64, linux/ppc64le, linux/s390x") {
			t.Errorf("error %v", err)
		}
	})
}

func TestRefused(t *testing.T) {
	oci := ocispec.MediaTypeImageManifest
	for name, test := range map[string]struct {
		source func(s store) ocispec.Descriptor
		want   string
	}{
		"other diff IDs": {func(s store) ocispec.Descriptor {
			var m ocispec.Manifest
			s.read(s.image(oci, "amd64", "a", "b"), &m)
			m.Layers = m.Layers[:1]
			return s.json(oci, m)
		}, "1 layers, but 2 diff IDs"},
		"no layers": {func(s store) ocispec.Descriptor { return s.image(oci, "amd64") }, "no layers"},
		"too many layers": {func(s store) ocispec.Descriptor {
			return s.image(oci, "amd64", slices.Repeat([]string{"a"}, 256)...)
		}, "at most 255"},
		"block image": {func(s store) ocispec.Descriptor {
			c, _ := converter(s)
			return convertOne(s.t, c, s.image(oci, "amd64", "a"))
		}, "block layer already"},
		"artifact": {func(s store) ocispec.Descriptor { return s.add("text/plain", "hello") }, `media type "text/plain"`},
		"unlike its digest": {func(s store) ocispec.Descriptor {
			d := s.image(oci, "amd64", "a")
			d.Data, d.Size = []byte("{}"), 2
			d.Digest = "sha256:xyz"
			return d
		}, "digest"},
		"endless nesting": {func(s store) ocispec.Descriptor {
			desc := s.image(oci, "amd64", "a")
			for range 20 {
				desc = s.json(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{desc}})
			}
			return desc
		}, "nested"},
		"huge": {func(s store) ocispec.Descriptor { return s.add(oci, strings.Repeat(" ", 9<<20)) }, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			src := test.source(s)
			c, _ := converter(s)
			if _, err := c.Convert(t.Context(), src); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// TestPackFails: what is reported is why the pack failed, not that it stopped
// everything else.
func TestPackFails(t *testing.T) {
	s := newStore(t)
	src := s.image(ocispec.MediaTypeImageManifest, "amd64", slices.Repeat([]string{"a", "b", "c"}, 20)...)
	c, applied := converter(s)
	c.Builder = fake{store: s, applied: applied, outputs: new([][]int), fail: digest.FromString("diff of b").String()}
	if _, err := c.Convert(t.Context(), src); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error %v", err)
	}
}

func TestLayerUUID(t *testing.T) {
	chain := digest.NewDigestFromEncoded(digest.SHA256, "00112233445566778899aabbccddeeff"+strings.Repeat("f", 32))
	if got, want := convert.LayerUUID(chain), "00112233-4455-6677-8899-aabbccddeeff"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := convert.LayerUUID(""); got != "" {
		t.Errorf("the bottom layer's parent is %q", got)
	}
}
