// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	filefetch "github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// BenchmarkConvertAgainstKernel: what does it cost to make the blob of a layer
// of a tar.gz in user space, compared with what ctr obdconv does: to export a
// disk, make a file system on it, mount it, let containerd unpack there,
// unmount, seal and compress? What the kernel's own threads take is not
// counted, in its favour.
func BenchmarkConvertAgainstKernel(b *testing.B) {
	need.FUSE(b)
	need.Loop(b)
	name, id := benchLayer(b)
	compare(b,
		func() error { return convertedByKernel(b, name, id) },
		func() error { return converted(b, name, id) })
}

// convertedByKernel makes the blob of the layer as ctr obdconv does.
func convertedByKernel(b *testing.B, name string, id digest.Digest) error {
	dir := b.TempDir()
	upper := spec.Upper{Data: filepath.Join(dir, "data"), Index: filepath.Join(dir, "index")}
	w, err := lsmt.Create(upper.Data, upper.Index, lsmt.CreateOptions{VirtualSize: 64 << 30, Direct: true})
	if err != nil {
		return err
	}
	disk, err := lsmt.Overlay(nil, w)
	if err != nil {
		return err
	}
	if err := exported(b, disk, func(d blockmount.Device) error { return filled(b, d, name, id) }); err != nil {
		return err
	}
	sealed := filepath.Join(dir, "sealed")
	if err := image.Seal(b.Context(), upper, sealed); err != nil {
		return err
	}
	blob, err := filefetch.Open(sealed)
	if err != nil {
		return err
	}
	out, err := convert.CommitBlob(b.Context(), blob, convert.BlobOptions{ChainID: id, TempDir: dir})
	if err != nil {
		return errors.Join(err, blob.Close())
	}
	return errors.Join(out.Close(), blob.Close(), os.Remove(sealed))
}

// exported shows the kernel v while use runs.
func exported(b *testing.B, v backend.Volume, use func(blockmount.Device) error) error {
	b.Helper()
	e, err := fuse.New(fuse.Options{Dir: filepath.Join(b.TempDir(), "devices")})
	if err != nil {
		return err
	}
	d, err := e.Export(b.Context(), "layer", v)
	if err != nil {
		return errors.Join(err, e.Close())
	}
	dev, ok := d.(*fuse.Device)
	if !ok {
		b.Fatalf("Export returned a %T", d)
	}
	// Whoever waits for a hung device cannot be killed.
	timer := time.AfterFunc(10*time.Minute, func() { b.Errorf("the device hangs, aborted: %v", dev.Abort()) })
	defer timer.Stop()
	err = use(blockmount.Device{Path: d.Path(), File: true})
	return errors.Join(err, d.Remove(context.WithoutCancel(b.Context())), e.Close())
}

// filled makes a file system on the device with what containerd unpacks of the
// tar.gz.
func filled(b *testing.B, d blockmount.Device, name string, id digest.Digest) error {
	b.Helper()
	kind, err := blockmount.ParseFS("ext4")
	if err != nil {
		return err
	}
	if err := blockmount.Make(b.Context(), d, kind); err != nil {
		return err
	}
	root := b.TempDir()
	if err := blockmount.Mount(d, root, kind, true); err != nil {
		return err
	}
	return errors.Join(unpacked(b.Context(), name, id, root), blockmount.Unmount(root))
}

// unpacked lets containerd unpack the tar.gz.
func unpacked(ctx context.Context, name string, id digest.Digest, root string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	tar, err := compression.DecompressStream(in)
	if err != nil {
		return err
	}
	defer tar.Close()
	verifier := id.Verifier()
	tee := io.TeeReader(tar, verifier)
	if _, err := archive.Apply(ctx, root, tee); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("the content is not that of %s", id)
	}
	return nil
}
