// SPDX-License-Identifier: Apache-2.0

// Package memory finds layers and manifests that were converted before, in
// the repository that is written to or in another of its registry, by what a
// deduplication database knows.
//
// The one thing to know: the database is believed in nothing but digests. What
// it names is used only if the registry has it, and a database that fails
// costs time, never the conversion.
package memory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
	"github.com/overlaybd-go/overlaybd/image/convert/pipeline"
)

// maxMounts is how many other repositories are tried for one blob.
const maxMounts = 5

// A Repository is where conversions are written to. Package remote implements
// it.
type Repository interface {
	// Has reports whether the repository has the blob or document. A size of
	// zero is not known.
	Has(ctx context.Context, desc ocispec.Descriptor) (bool, error)
	Mount(ctx context.Context, desc ocispec.Descriptor, from string) (bool, error)
	Blob(ctx context.Context, desc ocispec.Descriptor) (fetcher.Blob, error)
}

// Options say whose conversions may be used.
type Options struct {
	Host string // of the registry, with the port if there is one
	Repo string // path of the repository

	// Layers returns what besides the source's layers, uncompressed, determines
	// the bytes of a layer.
	Layers func(l convert.Layer) dedup.Tag

	// Manifests is what besides the source determines those of a manifest.
	Manifests dedup.Tag

	// MediaType returns what a manifest's type becomes.
	MediaType func(source string) string

	// Document reads a document of the repository.
	Document func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)

	Log *slog.Logger
}

// A Memory is a database for one repository.
type Memory struct {
	db   *dedup.DB
	repo Repository
	opts Options
}

var (
	_ pipeline.Cache = (*Memory)(nil)
	_ convert.Memory = (*Memory)(nil)
)

// New returns what db knows of repo.
func New(db *dedup.DB, repo Repository, opts Options) *Memory { return &Memory{db, repo, opts} }

func (m *Memory) layer(l convert.Layer) dedup.LayerKey {
	return dedup.LayerKey{Host: m.opts.Host, Repo: m.opts.Repo, ChainID: l.ChainID, Tag: m.opts.Layers(l)}
}

// Find returns what the layer has become, if the repository has it or may
// mount it.
func (m *Memory) Find(ctx context.Context, l convert.Layer) (ocispec.Descriptor, fetcher.Blob, error) {
	key := m.layer(l)
	own, elsewhere, err := m.db.Layer(ctx, key)
	if err != nil && !errors.Is(err, dedup.ErrInvalid) {
		m.warn(ctx, err)
		return ocispec.Descriptor{}, nil, ctx.Err()
	}
	if err == nil && own != nil {
		desc := blobOf(own)
		switch ok, err := m.repo.Has(ctx, desc); {
		case err != nil: // which says nothing about the row
			m.warn(ctx, err)
			return ocispec.Descriptor{}, nil, ctx.Err()
		case ok:
			return m.open(ctx, desc)
		}
	}
	if own != nil || err != nil {
		m.warn(ctx, m.db.DeleteLayer(ctx, key))
	}
	for _, e := range elsewhere[:min(len(elsewhere), maxMounts)] {
		if desc := blobOf(&e); m.mount(ctx, desc, e.Repo) {
			m.warn(ctx, m.db.PutLayer(ctx, key, desc.Digest, desc.Size))
			return m.open(ctx, desc)
		}
	}
	return ocispec.Descriptor{}, nil, ctx.Err()
}

func blobOf(e *dedup.Entry) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: e.Digest, Size: e.Size}
}

func (m *Memory) open(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, fetcher.Blob, error) {
	b, err := m.repo.Blob(ctx, desc)
	if err != nil {
		m.warn(ctx, err)
		return ocispec.Descriptor{}, nil, ctx.Err()
	}
	return ocispec.Descriptor{Digest: desc.Digest, Size: desc.Size}, b, nil
}

func (m *Memory) mount(ctx context.Context, desc ocispec.Descriptor, from string) bool {
	ok, err := m.repo.Mount(ctx, desc, from)
	m.warn(ctx, err)
	return ok && err == nil
}

// warn notes an error that costs time only.
func (m *Memory) warn(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		m.opts.Log.Warn("deduplication does without", slog.Any("err", err))
	}
}

// Add notes what a layer has become. That a conversion made something else of
// the same is an error.
func (m *Memory) Add(ctx context.Context, l convert.Layer, blob ocispec.Descriptor) error {
	return m.noted(ctx, m.db.PutLayer(ctx, m.layer(l), blob.Digest, blob.Size))
}

func (m *Memory) noted(ctx context.Context, err error) error {
	if errors.Is(err, dedup.ErrMismatch) {
		return fmt.Errorf("this convertor is not the one that filled the deduplication database, or has a fault: %w", err)
	}
	m.warn(ctx, err)
	return nil
}

func (m *Memory) manifest(source ocispec.Descriptor) dedup.ManifestKey {
	return dedup.ManifestKey{
		Host: m.opts.Host, Repo: m.opts.Repo, Source: source.Digest,
		MediaType: m.opts.MediaType(source.MediaType), Tag: m.opts.Manifests,
	}
}

// Recall returns what the manifest has become, if the repository has it with
// all it refers to. What another repository has is not looked up: its layers
// are found one by one, and the rest is small.
func (m *Memory) Recall(ctx context.Context, source ocispec.Descriptor) (ocispec.Descriptor, bool, error) {
	key := m.manifest(source)
	own, _, err := m.db.Manifest(ctx, key)
	if err != nil && !errors.Is(err, dedup.ErrInvalid) {
		m.warn(ctx, err)
		return source, false, ctx.Err()
	}
	if own == nil && err == nil {
		return source, false, nil
	}
	if own != nil {
		desc := source
		desc.MediaType, desc.Digest, desc.Size = key.MediaType, own.Digest, own.Size
		switch ok, err := m.complete(ctx, desc); {
		case err != nil:
			m.warn(ctx, err)
			return source, false, ctx.Err()
		case ok:
			return desc, true, nil
		}
	}
	m.warn(ctx, m.db.DeleteManifest(ctx, key))
	return source, false, ctx.Err()
}

// complete reports whether the repository has a manifest and its blobs, and
// the layers that turbo layers map into.
func (m *Memory) complete(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if ok, err := m.repo.Has(ctx, desc); !ok || err != nil {
		return false, err
	}
	text, err := m.opts.Document(ctx, desc)
	if err != nil {
		return false, err
	}
	var manifest ocispec.Manifest
	if json.Unmarshal(text, &manifest) != nil {
		return false, nil //nolint:nilerr // it is there, but not what was noted
	}
	for _, d := range blobsOf(manifest) {
		if ok, err := m.repo.Has(ctx, d); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// blobsOf returns all that a converted manifest needs.
func blobsOf(m ocispec.Manifest) []ocispec.Descriptor {
	all := append(m.Layers, m.Config)
	for _, l := range m.Layers {
		if target, ok := l.Annotations[convert.AnnotationTarget]; ok {
			all = append(all, ocispec.Descriptor{Digest: digest.Digest(target)})
		}
	}
	return all
}

// Remember notes what a manifest has become.
func (m *Memory) Remember(ctx context.Context, source, converted ocispec.Descriptor) error {
	return m.noted(ctx, m.db.PutManifest(ctx, m.manifest(source), converted.Digest, converted.Size))
}
