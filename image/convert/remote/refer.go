// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// refer lists a document among those that refer to its subject, for a
// registry that does not keep such lists: an index under the tag that the
// distribution specification derives from the subject's digest.
func (r *Repository) refer(ctx context.Context, desc ocispec.Descriptor, text []byte) error {
	var doc struct {
		Subject     *ocispec.Descriptor
		Annotations map[string]string
	}
	if err := json.Unmarshal(text, &doc); err != nil || doc.Subject == nil {
		return err
	}
	tag := doc.Subject.Digest.Algorithm().String() + "-" + doc.Subject.Digest.Encoded()
	entry := ocispec.Descriptor{
		MediaType: desc.MediaType, ArtifactType: desc.ArtifactType, Digest: desc.Digest, Size: desc.Size, Annotations: doc.Annotations,
	}
	// Referrers of one subject are written one after the other, and rarely.
	r.mu.Lock()
	defer r.mu.Unlock()
	index, err := r.referrers(ctx, tag)
	if err != nil {
		return fmt.Errorf("read referrers of %s: %w", doc.Subject.Digest, err)
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest })
	index.Manifests = append(index.Manifests, entry)
	list, err := json.Marshal(index)
	if err != nil {
		return err
	}
	listed := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(list), Size: int64(len(list))}
	if _, err := r.put(ctx, listed, tag, list); err != nil {
		return fmt.Errorf("list %s as referrer of %s: %w", desc.Digest, doc.Subject.Digest, err)
	}
	return nil
}

// referrers returns the index under a tag, an empty one if there is none.
func (r *Repository) referrers(ctx context.Context, tag string) (ocispec.Index, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var text []byte
	err := r.retry(ctx, func() (err error) {
		text, _, err = r.document(ctx, tag, []string{ocispec.MediaTypeImageIndex})
		return err
	})
	if errdefs.IsNotFound(err) {
		return index, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &index)
	}
	return index, err
}
