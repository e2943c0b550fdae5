// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A meter counts what goes through it.
type meter struct{ n int64 }

func (m *meter) Write(p []byte) (int, error) {
	m.n += int64(len(p))
	return len(p), nil
}

// A contentMeter is a Builder that counts what is content.
type contentMeter struct {
	*lsmt.Builder
	n int64
}

func (m *contentMeter) WriteContent(ctx context.Context, p []byte, off int64) (int, error) {
	m.n += int64(len(p))
	return m.Builder.WriteContent(ctx, p, off)
}

// unpack makes a layer of a tar on a new file system, and returns how long
// that took, the size of the layer and how much of it is content.
func unpack(b *testing.B, layer io.Reader, open func(context.Context, backend.Writer) (vfs.FileSystem, error)) (took time.Duration, size, content int64) {
	b.Helper()
	start := time.Now()
	var w meter
	disk := &contentMeter{Builder: must(lsmt.Build(&w, nil, lsmt.BuilderOptions{VirtualSize: 64 << 30, TempDir: b.TempDir()}))}
	defer disk.Close()
	f := must(open(b.Context(), disk))
	for _, step := range []func() error{
		func() error { return build.Apply(b.Context(), f, layer) },
		func() error { return f.Sync(b.Context()) },
		func() error { return disk.Finish(b.Context()) },
	} {
		if err := step(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start), w.n, disk.n
}

func onEROFS(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error) {
	if err := erofs.Format(ctx, dev, erofs.FormatOptions{}); err != nil {
		return nil, err
	}
	return erofs.Open(ctx, dev)
}

func onExt4(ctx context.Context, dev backend.Writer) (vfs.FileSystem, error) {
	if err := ext4.Format(ctx, dev, ext4.FormatOptions{}); err != nil {
		return nil, err
	}
	return ext4.Open(ctx, dev)
}

// BenchmarkUnpack asks what a layer of many small files costs on EROFS over the
// same on ext4, in time ("of-ext4") and in bytes.
func BenchmarkUnpack(b *testing.B) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	src := runtime.GOROOT() + "/src" //nolint:staticcheck // the toolchain that runs the test is here
	if err := w.AddFS(os.DirFS(src)); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(layer.Len()))
	var ours, theirs time.Duration
	for b.Loop() {
		took, size, content := unpack(b, bytes.NewReader(layer.Bytes()), onEROFS)
		ours += took
		b.ReportMetric(float64(size)/1e6, "layerMB")
		b.ReportMetric(float64(size-content)/1e6, "metaMB")
		took, size, content = unpack(b, bytes.NewReader(layer.Bytes()), onExt4)
		theirs += took
		b.ReportMetric(float64(size)/1e6, "ext4-layerMB")
		b.ReportMetric(float64(size-content)/1e6, "ext4-metaMB")
	}
	b.ReportMetric(float64(ours)/float64(theirs), "of-ext4")
}
