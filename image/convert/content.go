// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Store is a place to convert images from and to.
type Store interface {
	Source
	Target
}

// ContentStore returns containerd's content store, which is a [PartialSource].
// What is pushed tells the garbage collector what it refers to.
func ContentStore(s interface {
	content.Provider
	content.Ingester
},
) Store {
	return contentStore{s, s}
}

// gcLabel begins the labels that the garbage collector follows.
const gcLabel = "containerd.io/gc.ref.content."

type contentStore struct {
	content.Provider
	content.Ingester
}

var _ PartialSource = contentStore{}

func (s contentStore) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return content.BlobReadSeeker(ctx, s.Provider, desc)
}

func (s contentStore) Has(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	ra, err := s.ReaderAt(ctx, desc)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, ra.Close()
}

func (s contentStore) Push(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) error {
	labels := make(map[string]string, len(children))
	for i, c := range children {
		switch {
		case images.IsManifestType(c.MediaType) || images.IsIndexType(c.MediaType):
			labels[fmt.Sprintf(gcLabel+"m.%d", i)] = c.Digest.String()
		case images.IsLayerType(c.MediaType):
			labels[fmt.Sprintf(gcLabel+"l.%d", i)] = c.Digest.String()
		default:
			labels[gcLabel+"config"] = c.Digest.String()
		}
	}
	return content.WriteBlob(ctx, s.Ingester, "convert-"+desc.Digest.String(), bytes.NewReader(text), desc, content.WithLabels(labels))
}
