// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
)

// maxDocument bounds an index or manifest, in bytes; registries take no more
// than 4 MiB.
const maxDocument = 8 << 20

// documents are the media types that a tag may stand for.
var documents = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Manifest,
}

func isDocument(desc ocispec.Descriptor) bool {
	return images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType)
}

// firstBudget is how long the first request is repeated: nothing is lost yet
// if a registry is down, and often its name is wrong.
const firstBudget = 5 * time.Second

// Resolve asks the registry for the document that the name stands for.
func (r *Repository) Resolve(ctx context.Context) (desc ocispec.Descriptor, err error) {
	var text []byte
	opts := r.c.opts.Retry
	opts.Budget = min(opts.Budget, firstBudget)
	err = retry.Do(ctx, opts, func() error {
		text, desc.MediaType, err = r.document(ctx, r.name, documents)
		return err
	})
	if err != nil {
		return desc, fmt.Errorf("look up %s:%s: %w", r.repo, r.name, err)
	}
	desc.Digest, desc.Size = digest.FromBytes(text), int64(len(text))
	if d, err := digest.Parse(r.name); err == nil && d != desc.Digest {
		return desc, fmt.Errorf("look up %s@%s: the registry has something else there, %s", r.repo, r.name, desc.Digest)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.top = text
	return desc, nil
}

func (r *Repository) retry(ctx context.Context, f func() error) error {
	return retry.Do(ctx, r.c.opts.Retry, f)
}

// document returns a manifest or index and its media type.
func (r *Repository) document(ctx context.Context, name string, accept []string) ([]byte, string, error) {
	resp, err := r.send(ctx, request{
		method: http.MethodGet, url: r.url("manifests", name),
		header: http.Header{"Accept": accept},
	})
	if err != nil {
		return nil, "", err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", r.failure(resp)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, "", err
	}
	if len(text) > maxDocument {
		return nil, "", fmt.Errorf("it is larger than %d bytes", maxDocument)
	}
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return nil, "", fmt.Errorf("%s names no media type: %.100q", r.host.Host, resp.Header.Get("Content-Type"))
	}
	return text, mediaType, nil
}

// Open opens a blob or document. What it streams of a blob is asked for again
// where it breaks off.
func (r *Repository) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if isDocument(desc) {
		return r.openDocument(ctx, desc)
	}
	b, err := r.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	s, err := fetcher.ReadRange(ctx, b, 0, b.Size())
	if err != nil {
		return nil, errors.Join(notFound(err), b.Close())
	}
	return &blobStream{s, b}, nil
}

func (r *Repository) openDocument(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r.mu.Lock()
	text := r.top
	r.mu.Unlock()
	if digest.FromBytes(text) == desc.Digest {
		return io.NopCloser(bytes.NewReader(text)), nil
	}
	err := r.retry(ctx, func() (err error) {
		text, _, err = r.document(ctx, desc.Digest.String(), []string{desc.MediaType})
		return err
	})
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(text)), nil
}

// notFound gives an error the class that a Source's has.
func notFound(err error) error {
	if errors.Is(err, fetcher.ErrNotFound) {
		return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	return err
}

// Blob opens a blob for random reads, each of which is one request or more.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) (fetcher.Blob, error) {
	b, err := retry.New(r.c.blobs, r.c.opts.Retry).Open(ctx, fetcher.Ref{
		URL: r.url("blobs", desc.Digest.String()).String(), Digest: desc.Digest, Size: desc.Size,
	})
	return b, notFound(err)
}

// A blobStream is a blob that is read from its start.
type blobStream struct {
	io.ReadCloser
	blob fetcher.Blob
}

func (s *blobStream) Close() error { return errors.Join(s.ReadCloser.Close(), s.blob.Close()) }

// Has asks whether the repository has the blob or document.
func (r *Repository) Has(ctx context.Context, desc ocispec.Descriptor) (ok bool, err error) {
	if err := desc.Digest.Validate(); err != nil {
		return false, err
	}
	q := request{method: http.MethodHead, url: r.url("blobs", desc.Digest.String())}
	if isDocument(desc) {
		q.url, q.header = r.url("manifests", desc.Digest.String()), http.Header{"Accept": {desc.MediaType}}
	}
	err = r.retry(ctx, func() error {
		resp, err := r.send(ctx, q)
		if err != nil {
			return err
		}
		switch resp.StatusCode {
		case http.StatusOK:
			discard(resp)
			// Some registries know the digest of a blob that they have lost
			// the content of.
			ok = resp.ContentLength < 0 || desc.Size == 0 || resp.ContentLength == desc.Size
			return nil
		case http.StatusNotFound:
			discard(resp)
			return nil
		}
		return r.failure(resp)
	})
	if err != nil {
		return false, fmt.Errorf("look for %s in %s: %w", desc.Digest, r.repo, err)
	}
	return ok, nil
}
