// SPDX-License-Identifier: Apache-2.0

package referrer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/image/turbo"
)

// The artifact types of block images: TurboOCI ones and those with content of
// their own. Both are the reference's, and durable.
const (
	TypeTurbo  = "application/vnd.containerd.overlaybd.turbo.v1+json"
	TypeNative = "application/vnd.containerd.overlaybd.native.v1+json"
)

// What a repository may make the node do.
const (
	maxManifest   = 4 << 20   // bytes; what registries take at most
	maxBlobs      = 256 << 20 // bytes of metadata to be fetched
	maxCandidates = 4         // of a type; manifests to be tried
	parallel      = 8         // requests
)

// The annotations of layers.
const (
	annotBlobDigest = "containerd.io/snapshot/overlaybd/blob-digest"
	annotBlobSize   = "containerd.io/snapshot/overlaybd/blob-size"
	annotTarget     = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest"
	annotOldTarget  = "containerd.io/snapshot/overlaybd/fastoci/target-digest"
)

// find looks for the image attached to k and brings its files to dir.
func (f *Finder) find(ctx context.Context, k key, dir string) (*Image, error) {
	if err := k.manifest.Validate(); err != nil {
		return nil, err
	}
	repo, err := f.opts.Registry.Open(ctx, k.image)
	if err != nil {
		return nil, err
	}
	var source ocispec.Manifest
	var all []ocispec.Descriptor
	g, gctx := errgroup.WithContext(ctx) // whichever takes longer
	g.Go(func() (err error) {
		source, err = fetchManifest(gctx, repo, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: k.manifest})
		return err
	})
	g.Go(func() (err error) {
		if all, err = repo.Referrers(gctx, k.manifest, TypeTurbo, TypeNative); err != nil {
			return fmt.Errorf("list what refers to it: %w", err)
		}
		if len(candidates(all)) == 0 {
			return ErrNone
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var errs []error
	for i, desc := range candidates(all) {
		img, err := load(ctx, repo, desc, k.manifest, source)
		if err == nil {
			err = bring(ctx, repo, img, filepath.Join(dir, strconv.Itoa(i)))
		}
		if err == nil {
			return img, nil
		}
		errs = append(errs, fmt.Errorf("%s refers to it, but cannot be used: %w", desc.Digest, err))
	}
	return nil, errors.Join(errs...)
}

// candidates returns the block images among all: TurboOCI ones first, as they
// are tied to the layers by digest, and of each type first what came last.
func candidates(all []ocispec.Descriptor) (best []ocispec.Descriptor) {
	for _, kind := range []string{TypeTurbo, TypeNative} {
		n := 0
		for _, desc := range slices.Backward(all) {
			if desc.ArtifactType == kind && n < maxCandidates {
				best = append(best, desc)
				n++
			}
		}
	}
	return best
}

// load reads the block image desc, which is to stand for source.
func load(ctx context.Context, repo Repository, desc ocispec.Descriptor, subject digest.Digest, source ocispec.Manifest) (*Image, error) {
	desc.MediaType = ocispec.MediaTypeImageManifest
	m, err := fetchManifest(ctx, repo, desc)
	if err != nil {
		return nil, err
	}
	if m.Subject == nil || m.Subject.Digest != subject {
		return nil, errors.New("its subject is another image")
	}
	img, err := match(m, source, desc.ArtifactType == TypeTurbo)
	if err != nil {
		return nil, err
	}
	img.Manifest = desc.Digest
	return img, nil
}

// match returns the image that m describes, if its layers are those of source.
func match(m, source ocispec.Manifest, turbo bool) (*Image, error) {
	if len(m.Layers) == 0 || len(m.Layers) != len(source.Layers) {
		return nil, fmt.Errorf("it has %d layers where the image has %d", len(m.Layers), len(source.Layers))
	}
	img := new(Image)
	var sum int64
	for i, desc := range m.Layers {
		of := source.Layers[i]
		l := Layer{Source: of.Digest, SourceType: of.MediaType, Digest: desc.Digest, Size: desc.Size}
		if err := check(desc, of, turbo); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		if turbo {
			l.Files = strconv.Itoa(i) // below a directory yet to be known
			sum += desc.Size
		}
		if sum > maxBlobs {
			return nil, fmt.Errorf("its metadata are larger than %d bytes", maxBlobs)
		}
		img.Layers = append(img.Layers, l)
	}
	return img, nil
}

// check reports why desc is not a block layer in place of the layer of.
func check(desc, of ocispec.Descriptor, turbo bool) error {
	for _, d := range []digest.Digest{desc.Digest, of.Digest} {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("%.100q is not a sha256 digest", string(d))
		}
	}
	a := desc.Annotations
	switch {
	case desc.Size <= 0 || desc.Size > 1<<50:
		return fmt.Errorf("it has %d bytes", desc.Size)
	case a[annotBlobDigest] != desc.Digest.String() || a[annotBlobSize] != strconv.FormatInt(desc.Size, 10):
		return errors.New("its annotations do not call it a block layer")
	case turbo && a[annotTarget] != of.Digest.String() && a[annotOldTarget] != of.Digest.String():
		return fmt.Errorf("its content is not in %s", of.Digest)
	case !turbo && (a[annotTarget] != "" || a[annotOldTarget] != ""):
		return errors.New("its content is in another layer")
	}
	return nil
}

// bring fetches the files of img to the directory dir.
func bring(ctx context.Context, repo Repository, img *Image, dir string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range img.Layers {
		l := &img.Layers[i]
		if l.Files == "" {
			continue
		}
		l.Files = filepath.Join(dir, l.Files)
		g.Go(func() error {
			if err := bringLayer(ctx, repo, *l); err != nil {
				return fmt.Errorf("fetch metadata %s: %w", l.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func bringLayer(ctx context.Context, repo Repository, l Layer) error {
	r, err := repo.Fetch(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.Digest, Size: l.Size})
	if err != nil {
		return err
	}
	defer r.Close()
	if err := os.MkdirAll(l.Files, 0o700); err != nil {
		return err
	}
	return turbo.Unpack(r, l.Digest, l.Size, l.Files)
}

func fetchManifest(ctx context.Context, repo Repository, desc ocispec.Descriptor) (m ocispec.Manifest, err error) {
	if err := desc.Digest.Validate(); err != nil {
		return m, err
	}
	r, err := repo.Fetch(ctx, desc)
	if err != nil {
		return m, fmt.Errorf("fetch manifest %s: %w", desc.Digest, err)
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return m, fmt.Errorf("fetch manifest %s: %w", desc.Digest, err)
	}
	if len(text) > maxManifest {
		return m, fmt.Errorf("manifest %s is larger than %d bytes", desc.Digest, maxManifest)
	}
	if got := desc.Digest.Algorithm().FromBytes(text); got != desc.Digest {
		return m, fmt.Errorf("fetch manifest %s: its content is %s", desc.Digest, got)
	}
	return m, json.Unmarshal(text, &m)
}
