// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// maxDocument bounds manifest.json and a config, in bytes.
const maxDocument = 8 << 20

// A DockerReader is one image of an archive that docker save has written. Such
// an archive has no manifests; the one that a registry would have is made up.
type DockerReader struct {
	file     *os.File
	files    *files
	name     string
	manifest []byte                   // set by Resolve
	paths    map[digest.Digest]string // of config and layers; set by Resolve
}

var _ store.Source = (*DockerReader)(nil)

// OpenDocker returns the image of the docker archive file that has a name, or
// the only one if name is empty.
func OpenDocker(file, name string) (*DockerReader, error) {
	f, found, err := openFiles(file)
	if err != nil {
		return nil, fmt.Errorf("open docker archive: %w", err)
	}
	return &DockerReader{file: f, files: found, name: name}, nil
}

// Close closes the archive.
func (r *DockerReader) Close() error { return r.file.Close() }

// A saved image is one entry of manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Resolve makes up the manifest of the image.
func (r *DockerReader) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	text, err := r.read("manifest.json")
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read docker archive: %w", err)
	}
	var all []saved
	if err := json.Unmarshal(text, &all); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read manifest.json: %w", err)
	}
	image, err := choose(all, r.name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if r.manifest, err = r.synthesize(ctx, image); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read docker archive: %w", err)
	}
	return descriptor(images.MediaTypeDockerSchema2Manifest, r.manifest), nil
}

func descriptor(mediaType string, text []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
}

// choose returns the image that has a name, or the only one.
func choose(all []saved, name string) (saved, error) {
	if name == "" && len(all) == 1 {
		return all[0], nil
	}
	var tags []string
	for _, image := range all {
		if name != "" && slices.ContainsFunc(image.RepoTags, func(t string) bool { return familiar(t) == familiar(name) }) {
			return image, nil
		}
		tags = append(tags, image.RepoTags...)
	}
	list := fmt.Sprintf("%d images, with the names %.1000q", len(all), tags)
	if name == "" {
		return saved{}, fmt.Errorf("the archive has %s: choose one", list)
	}
	return saved{}, fmt.Errorf("%w: the archive has no image %q, but %s", errdefs.ErrNotFound, name, list)
}

// familiar returns a name in full, so that short forms of it compare equal.
func familiar(name string) string {
	n, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return n.String()
}

// synthesize returns the manifest of an image.
func (r *DockerReader) synthesize(ctx context.Context, image saved) ([]byte, error) {
	config, err := r.read(image.Config)
	if err != nil {
		return nil, err
	}
	var c struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", image.Config, err)
	}
	if len(c.RootFS.DiffIDs) != len(image.Layers) {
		return nil, fmt.Errorf("%d layers, but %d diff IDs in %s", len(image.Layers), len(c.RootFS.DiffIDs), image.Config)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: images.MediaTypeDockerSchema2Manifest,
		Config: descriptor(images.MediaTypeDockerSchema2Config, config),
	}
	r.paths = map[digest.Digest]string{m.Config.Digest: image.Config}
	for i, name := range image.Layers {
		l, err := r.layer(ctx, name, c.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", name, err)
		}
		m.Layers = append(m.Layers, l)
		r.paths[l.Digest] = name
	}
	return json.Marshal(m)
}

// layer describes the layer called name. One that is not compressed is its
// own diff; others are read to the end for their digest.
func (r *DockerReader) layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	f, size, err := r.open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	head := make([]byte, 4)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema2Layer, Digest: diffID, Size: size}
	switch compression(head[:n]) {
	case "":
		return desc, diffID.Validate()
	case "gzip":
		desc.MediaType = images.MediaTypeDockerSchema2LayerGzip
	case "zstd":
		desc.MediaType = images.MediaTypeDockerSchema2LayerZstd
	}
	digester := digest.SHA256.Digester()
	if _, err := io.Copy(digester.Hash(), cancelable{ctx, f}); err != nil {
		return desc, err
	}
	desc.Digest = digester.Digest()
	return desc, nil
}

// cancelable is a Reader that ends with its context.
type cancelable struct {
	ctx context.Context //nolint:containedctx // lives as long as one copy
	r   io.Reader
}

func (c cancelable) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// Open opens the manifest, the config or a layer of what Resolve has found.
func (r *DockerReader) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Digest == digest.FromBytes(r.manifest) {
		return io.NopCloser(bytes.NewReader(r.manifest)), nil
	}
	name, ok := r.paths[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("%w: %s is not in the image", errdefs.ErrNotFound, desc.Digest)
	}
	f, _, err := r.open(name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (r *DockerReader) open(name string) (*file, int64, error) {
	opened, err := r.files.Open(strings.TrimPrefix(name, "/"))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, 0, err
	}
	f, ok := opened.(*file)
	if !ok {
		return nil, 0, fmt.Errorf("%s: no file", name)
	}
	return f, f.Size(), nil
}

// read returns the content of a document.
func (r *DockerReader) read(name string) ([]byte, error) {
	f, size, err := r.open(name)
	if err != nil {
		return nil, err
	}
	if size > maxDocument {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxDocument)
	}
	return io.ReadAll(f)
}
