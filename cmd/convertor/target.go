// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// nowhere is a target that keeps nothing.
type nowhere struct{}

var _ store.Target = nowhere{}

func (nowhere) Has(context.Context, ocispec.Descriptor) (bool, error) { return false, nil }
func (nowhere) PushBlob(context.Context, ocispec.Descriptor, io.ReaderAt) error {
	return nil
}

func (nowhere) Push(context.Context, ocispec.Descriptor, []byte, []ocispec.Descriptor) error {
	return nil
}
func (nowhere) Tag(context.Context, ocispec.Descriptor) error { return nil }
func (nowhere) Close() error                                  { return nil }

// nameless is a target whose image gets no name: a referrer is found by its
// subject.
type nameless struct{ store.Target }

func (nameless) Tag(context.Context, ocispec.Descriptor) error { return nil }

// A dump is a target whose documents are written to a directory, too: each
// manifest with its config below its digest, and the outermost index beside
// them. The manifest of an image that is no index lies there itself.
type dump struct {
	store.Target
	dir string

	mu   sync.Mutex // guards docs
	docs map[digest.Digest]document
}

type document struct {
	desc ocispec.Descriptor
	text []byte
}

func newDump(t store.Target, dir string) *dump {
	return &dump{Target: t, dir: dir, docs: map[digest.Digest]document{}}
}

func (d *dump) Push(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) error {
	d.mu.Lock()
	d.docs[desc.Digest] = document{desc, text}
	d.mu.Unlock()
	return d.Target.Push(ctx, desc, text, children)
}

// Tag writes the documents, once all of them are known.
func (d *dump) Tag(ctx context.Context, top ocispec.Descriptor) error {
	for dgst, doc := range d.docs {
		dir := filepath.Join(d.dir, dgst.Encoded()[:12])
		if dgst == top.Digest {
			dir = d.dir
		}
		if err := d.write(dir, doc); err != nil {
			return err
		}
	}
	return d.Target.Tag(ctx, top)
}

func (d *dump) write(dir string, doc document) error {
	switch {
	case images.IsIndexType(doc.desc.MediaType):
		return writeFile(dir, "index.json", doc.text)
	case !images.IsManifestType(doc.desc.MediaType):
		return nil // a config, written with its manifest
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(doc.text, &m); err != nil {
		return err
	}
	if err := writeFile(dir, "manifest.json", doc.text); err != nil {
		return err
	}
	return writeFile(dir, "config.json", d.docs[m.Config.Digest].text)
}

func writeFile(dir, name string, text []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), text, 0o644)
}
