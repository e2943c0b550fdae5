// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// epoch is the time of everything in an image that needs some time.
var epoch = time.Date(2023, time.November, 14, 22, 13, 20, 0, time.UTC)

// A Layer writes the entries of one layer.
type Layer func(*tar.Writer) error

// An Image is an OCI image layout on disk.
type Image struct {
	Dir    string
	Top    ocispec.Descriptor // manifest or index
	Layers []ocispec.Descriptor
}

// Size returns the compressed bytes of all layers.
func (i Image) Size() (n int64) {
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Build writes an image of the given platform and layers, bottom first, into
// the new layout dir. The command is what a container runs by default.
func Build(dir string, platform ocispec.Platform, command []string, layers ...Layer) (Image, error) {
	return build(dir, platform, command, gzip.BestSpeed, layers...)
}

func build(dir string, platform ocispec.Platform, command []string, level int, layers ...Layer) (Image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return Image{}, err
	}
	img := Image{Dir: dir}
	config := ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config = ocispec.ImageConfig{Cmd: command, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, WorkingDir: "/"}
	for i, l := range layers {
		desc, diffID, err := img.writeLayer(l, level)
		if err != nil {
			return Image{}, fmt.Errorf("layer %d: %w", i, err)
		}
		img.Layers = append(img.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, ocispec.History{Created: &epoch, CreatedBy: fmt.Sprintf("layer %d", i)})
	}
	configDesc, err := img.writeJSON(ocispec.MediaTypeImageConfig, dockerConfig{Image: config, OnBuild: []string{"RUN true"}})
	if err != nil {
		return Image{}, err
	}
	img.Top, err = img.writeJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: configDesc, Layers: img.Layers,
	})
	if err != nil {
		return Image{}, err
	}
	img.Top.Platform = &platform
	return img, img.writeIndex()
}

// dockerConfig has a member that OCI does not know and conversion must keep.
type dockerConfig struct {
	ocispec.Image
	OnBuild []string
}

// Merge writes an index over images into the new layout dir.
func Merge(dir string, images ...Image) (Image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return Image{}, err
	}
	merged := Image{Dir: dir}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, i := range images {
		if err := linkBlobs(i, merged); err != nil {
			return Image{}, err
		}
		index.Manifests = append(index.Manifests, i.Top)
		merged.Layers = append(merged.Layers, i.Layers...)
	}
	var err error
	if merged.Top, err = merged.writeJSON(ocispec.MediaTypeImageIndex, index); err != nil {
		return Image{}, err
	}
	return merged, merged.writeIndex()
}

// linkBlobs gives the layout to every blob of the layout from.
func linkBlobs(from, to Image) error {
	blobs, err := os.ReadDir(filepath.Join(from.Dir, "blobs", "sha256"))
	if err != nil {
		return err
	}
	for _, b := range blobs {
		d := digest.NewDigestFromEncoded(digest.SHA256, b.Name())
		if err := os.Link(from.blob(d), to.blob(d)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// Open returns the image in a layout that Build or Merge has written.
func Open(dir string) (Image, error) {
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return Image{}, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return Image{}, err
	}
	img := Image{Dir: dir, Top: index.Manifests[0]}
	text, err = os.ReadFile(img.blob(img.Top.Digest))
	if err != nil {
		return Image{}, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return Image{}, err
	}
	img.Layers = manifest.Layers
	return img, nil
}

func (i Image) blob(d digest.Digest) string {
	return filepath.Join(i.Dir, "blobs", "sha256", d.Encoded())
}

func (i Image) writeLayer(l Layer, level int) (desc ocispec.Descriptor, diffID digest.Digest, err error) {
	f, err := os.CreateTemp(i.Dir, "layer-")
	if err != nil {
		return desc, "", err
	}
	defer f.Close()
	blob, diff := digest.SHA256.Digester(), digest.SHA256.Digester()
	zw, err := gzip.NewWriterLevel(io.MultiWriter(f, blob.Hash()), level)
	if err != nil {
		return desc, "", err
	}
	tw := tar.NewWriter(io.MultiWriter(zw, diff.Hash()))
	if err := l(tw); err != nil {
		return desc, "", err
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return desc, "", err
	}
	st, err := f.Stat()
	if err != nil {
		return desc, "", err
	}
	desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: blob.Digest(), Size: st.Size()}
	return desc, diff.Digest(), os.Rename(f.Name(), i.blob(desc.Digest))
}

func (i Image) writeJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	return desc, os.WriteFile(i.blob(desc.Digest), text, 0o644)
}

func (i Image) writeIndex() error {
	text, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{i.Top},
	})
	if err != nil {
		return err
	}
	layout := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	return errors.Join(
		os.WriteFile(filepath.Join(i.Dir, "oci-layout"), layout, 0o644),
		os.WriteFile(filepath.Join(i.Dir, "index.json"), text, 0o644))
}
