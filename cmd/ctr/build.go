// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/uuid"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// Labels of a snapshot that becomes a block layer.
const (
	labelWritable = "containerd.io/snapshot/overlaybd.writable" // "dir": the snapshot is a mounted disk
	labelVSize    = "containerd.io/snapshot/overlaybd/vsize"    // GiB of the bottom layer
	labelSealed   = "containerd.io/snapshot/overlaybd.localcommitpath"
)

// A job is one run of obdconv.
type job struct {
	content     content.Store
	snapshots   snapshots.Snapshotter
	platform    platforms.Matcher
	fsType      string
	vsizeGB     string
	compression zfile.Options

	mu  sync.Mutex // guards out
	out io.Writer
}

var _ convert.Builder = (*job)(nil)

// Build rebuilds the layers of one image.
func (j *job) Build(ctx context.Context, img convert.Image, _ []int) ([][]convert.Packed, error) {
	b := &builder{job: j, id: "obdconv-" + uuid.NewString()}
	blobs, err := convert.InOrder(ctx, img.Layers, b.apply)
	layers := make([]convert.Packed, len(blobs))
	for i, desc := range blobs {
		layers[i].Descriptor = desc
	}
	return [][]convert.Packed{layers}, err
}

// A builder applies the layers of one image, each to a snapshot on top of the
// last. The snapshots' names are its own: those of another conversion, or of
// the same layer further down, have other parents. They belong to the lease of
// the command and go with it.
type builder struct {
	*job
	id  string
	top string // the last committed snapshot
}

// apply unpacks the layer onto a new disk and seals that.
func (b *builder) apply(ctx context.Context, l convert.Layer) (convert.Pack[ocispec.Descriptor], error) {
	start := time.Now()
	name := fmt.Sprintf("%s-%d", b.id, l.Index)
	active := name + "-active"
	mounts, err := b.snapshots.Prepare(ctx, active, b.top, snapshots.WithLabels(map[string]string{
		labelWritable:            "dir",
		labelVSize:               b.vsizeGB,
		convert.AnnotationFSType: b.fsType,
	}))
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	if err := withRoot(ctx, mounts, func(root string) error { return b.unpack(ctx, l, root) }); err != nil {
		return nil, err
	}
	if err := b.snapshots.Commit(ctx, name, active); err != nil {
		return nil, fmt.Errorf("commit snapshot: %w", err)
	}
	info, err := b.snapshots.Stat(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("look up snapshot: %w", err)
	}
	sealed := info.Labels[labelSealed]
	if sealed == "" {
		return nil, fmt.Errorf("the snapshotter has made no block layer: %w", errdefs.ErrNotImplemented)
	}
	b.top = name
	b.progress(l, "unpacked in %v", time.Since(start).Round(time.Millisecond))
	return func(ctx context.Context) (ocispec.Descriptor, error) { return b.pack(ctx, l, sealed) }, nil
}

// withRoot calls f with the directory that mounts make. A bind mount's source
// is used as it is: nothing is left mounted if the process is killed.
func withRoot(ctx context.Context, mounts []mount.Mount, f func(root string) error) error {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		return f(mounts[0].Source)
	}
	return mount.WithTempMount(ctx, mounts, f)
}

// unpack applies the layer to root, and checks that it is the one that the
// config names.
func (b *builder) unpack(ctx context.Context, l convert.Layer, root string) error {
	if l.Index == 0 {
		// mkfs makes it; the image may have one of its own.
		if err := os.Remove(filepath.Join(root, "lost+found")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	ra, err := b.content.ReaderAt(ctx, l.Source)
	if err != nil {
		return err
	}
	defer ra.Close()
	tar, err := compression.DecompressStream(content.NewReader(ra))
	if err != nil {
		return err
	}
	defer tar.Close()
	diffID := l.DiffID.Verifier()
	tee := io.TeeReader(tar, diffID)
	if _, err := archive.Apply(ctx, root, tee); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if !diffID.Verified() {
		return fmt.Errorf("its content is not what diff ID %s in the config says", l.DiffID)
	}
	return nil
}

// pack puts the sealed layer into the content store.
func (b *builder) pack(ctx context.Context, l convert.Layer, sealed string) (desc ocispec.Descriptor, err error) {
	start := time.Now()
	layer, err := file.Open(sealed)
	if err != nil {
		return desc, err
	}
	defer layer.Close() //nolint:errcheck // it is only read
	blob, err := convert.CommitBlob(ctx, layer, convert.BlobOptions{ChainID: l.ChainID, Parent: l.Parent, Compression: b.compression})
	if err != nil {
		return desc, err
	}
	defer blob.Close() //nolint:errcheck // it is only read
	desc = blob.Descriptor()
	ref := fmt.Sprintf("%s-%d", b.id, l.Index)
	uncompressed := content.WithLabels(map[string]string{labels.LabelUncompressed: desc.Digest.String()})
	if err := content.WriteBlob(ctx, b.content, ref, io.NewSectionReader(blob, 0, desc.Size), desc, uncompressed); err != nil {
		return desc, errors.Join(err, abort(ctx, b.content, ref))
	}
	b.progress(l, "packed into %s, %d bytes, in %v", desc.Digest, desc.Size, time.Since(start).Round(time.Millisecond))
	return desc, nil
}

// abort drops what was written of a blob.
func abort(ctx context.Context, store content.Store, ref string) error {
	if err := store.Abort(context.WithoutCancel(ctx), ref); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("drop unfinished blob: %w", err)
	}
	return nil
}
