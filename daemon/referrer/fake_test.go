// SPDX-License-Identifier: Apache-2.0

package referrer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/daemon/referrer"
)

// A fakeRegistry has one repository.
type fakeRegistry struct {
	blobs     map[digest.Digest][]byte
	referrers []ocispec.Descriptor
	asked     atomic.Int64 // times that it was opened

	// hook, if set, is called as a request begins, and may fail it.
	hook func(ctx context.Context, what string) error
}

func newRegistry() *fakeRegistry { return &fakeRegistry{blobs: map[digest.Digest][]byte{}} }

func (f *fakeRegistry) Open(context.Context, string) (referrer.Repository, error) {
	f.asked.Add(1)
	return f, nil
}

func (f *fakeRegistry) Referrers(ctx context.Context, _ digest.Digest, _ ...string) ([]ocispec.Descriptor, error) {
	if f.hook != nil {
		if err := f.hook(ctx, "referrers"); err != nil {
			return nil, err
		}
	}
	return f.referrers, nil
}

func (f *fakeRegistry) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if f.hook != nil {
		if err := f.hook(ctx, desc.Digest.String()); err != nil {
			return nil, err
		}
	}
	blob, ok := f.blobs[desc.Digest]
	if !ok {
		return nil, errors.New("no such blob")
	}
	return io.NopCloser(bytes.NewReader(blob)), nil
}

func (f *fakeRegistry) add(mediaType string, blob []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	f.blobs[desc.Digest] = blob
	return desc
}

func (f *fakeRegistry) addJSON(t testing.TB, v any) ocispec.Descriptor {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return f.add(ocispec.MediaTypeImageManifest, text)
}

// An entry is a file in an archive.
type entry struct {
	name, text string
	kind       byte
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.text)), Typeflag: e.kind}
		if e.kind == tar.TypeSymlink {
			h.Size, h.Linkname = 0, e.text
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := io.WriteString(w, e.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func file(name, text string) entry { return entry{name: name, text: text, kind: tar.TypeReg} }

// image adds an ordinary image of two layers.
func (f *fakeRegistry) image(t testing.TB) (subject ocispec.Descriptor, m ocispec.Manifest) {
	t.Helper()
	for _, text := range []string{"first", "second"} {
		m.Layers = append(m.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(text), Size: 5,
		})
	}
	return f.addJSON(t, m), m
}

// block returns the descriptor of the block layer blob for the ordinary one of.
func (f *fakeRegistry) block(blob []byte, of digest.Digest) ocispec.Descriptor {
	desc := f.add(ocispec.MediaTypeImageLayerGzip, blob)
	desc.Annotations = map[string]string{
		"containerd.io/snapshot/overlaybd/blob-digest": desc.Digest.String(),
		"containerd.io/snapshot/overlaybd/blob-size":   strconv.FormatInt(desc.Size, 10),
	}
	if of != "" {
		desc.Annotations["containerd.io/snapshot/overlaybd/turbo-oci/target-digest"] = of.String()
	}
	return desc
}

// attach adds the block image of layers to those that refer to subject.
func (f *fakeRegistry) attach(t testing.TB, kind string, subject ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	desc := f.addJSON(t, ocispec.Manifest{ArtifactType: kind, Subject: &subject, Layers: layers})
	desc.ArtifactType = kind
	f.referrers = append(f.referrers, desc)
	return desc
}

// turbo attaches a good TurboOCI image to a new image.
func (f *fakeRegistry) turbo(t testing.TB) (subject, attached ocispec.Descriptor, source ocispec.Manifest) {
	t.Helper()
	subject, source = f.image(t)
	var layers []ocispec.Descriptor
	for _, l := range source.Layers {
		blob := archive(t, file("ext4.fs.meta", "metadata for "+l.Digest.String()), file(".turbo.ociv1", ""), file("gzip.meta", "index"))
		layers = append(layers, f.block(blob, l.Digest))
	}
	return subject, f.attach(t, referrer.TypeTurbo, subject, layers...), source
}
