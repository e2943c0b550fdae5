// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Applier is a differ of containerd's that keeps the layers to be converted
// as they are. All others it leaves to the next differ, by failing with
// errdefs.ErrNotImplemented.
type Applier struct {
	s       *Snapshotter
	content content.Provider
}

var _ diff.Applier = (*Applier)(nil)

// Applier returns a differ that reads layers from c, containerd's content
// store.
func (s *Snapshotter) Applier(c content.Provider) *Applier { return &Applier{s, c} }

// Apply stores the layer desc if mounts are those of a snapshot that wants it
// so. It returns the descriptor of what it holds, uncompressed.
func (a *Applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	id, err := a.s.converting(ctx, mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	unlock, err := a.s.devices.lock(ctx, id)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer unlock()
	applied, err := a.store(ctx, desc, id)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("store layer %s of snapshot %s: %w", desc.Digest, id, err)
	}
	return applied, nil
}

// converting returns the id of the snapshot whose layer is to be stored and
// whose only mount is in mounts.
func (s *Snapshotter) converting(ctx context.Context, mounts []mount.Mount) (id string, err error) {
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		return "", errdefs.ErrNotImplemented
	}
	rest, ours := strings.CutPrefix(mounts[0].Source, s.at.snapshots()+"/")
	id, _, _ = strings.Cut(rest, "/")
	if !ours || id == "" || mounts[0].Source != s.at.fs(id) {
		return "", errdefs.ErrNotImplemented
	}
	err = s.view(ctx, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if ids[id] == "" && (err == nil || errdefs.IsNotFound(err)) { // as without any snapshot
			return errdefs.ErrNotImplemented
		}
		if err != nil {
			return err
		}
		_, info, _, err := storage.GetInfo(ctx, ids[id])
		if err == nil && (!isConverting(info) || !isStaging(info)) {
			err = errdefs.ErrNotImplemented
		}
		return err
	})
	return id, err
}

// store writes the layer desc beside the directory of snapshot id, whole or not
// at all.
func (a *Applier) store(ctx context.Context, desc ocispec.Descriptor, id string) (applied ocispec.Descriptor, err error) {
	if strings.Contains(desc.MediaType, "encrypted") {
		return applied, fmt.Errorf("it is encrypted, and cannot be read where it is: %w", errdefs.ErrInvalidArgument)
	}
	if err := desc.Digest.Validate(); err != nil {
		return applied, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if ns, ok := namespaces.Namespace(ctx); ok { // as a client of containerd
		ctx = namespaces.WithNamespace(ctx, ns)
	}
	src, err := a.content.ReaderAt(ctx, desc)
	if err != nil {
		return applied, err
	}
	defer src.Close()
	dir := a.s.at.temp(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return applied, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tmp, err := os.Create(filepath.Join(dir, filepath.Base(a.s.at.layerTar(id))))
	if err != nil {
		return applied, err
	}
	applied, err = keep(ctx, tmp, io.NewSectionReader(src, 0, src.Size()), desc.Digest)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return applied, err
	}
	if err := os.WriteFile(a.s.at.diffID(id), []byte(applied.Digest), 0o600); err != nil {
		return applied, err
	}
	if err := install(tmp.Name(), a.s.at.layerTar(id)); err != nil {
		return applied, err
	}
	return applied, syncDir(a.s.at.dir(id))
}

// keep copies the layer r, whose digest is to be want, to w, and describes what
// it holds.
func keep(ctx context.Context, w io.Writer, r io.Reader, want digest.Digest) (ocispec.Descriptor, error) {
	whole, plain := want.Algorithm().Digester(), digest.Canonical.Digester()
	raw := io.TeeReader(ctxReader{ctx, r}, io.MultiWriter(w, whole.Hash()))
	content, err := inflate(raw)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	size, err := io.Copy(plain.Hash(), content)
	content.Close()
	if err == nil {
		_, err = io.Copy(io.Discard, raw) // what lies behind the end
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if got := whole.Digest(); got != want {
		return ocispec.Descriptor{}, fmt.Errorf("its content is %s: %w", got, errdefs.ErrFailedPrecondition)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: plain.Digest(), Size: size}, nil
}

// ctxReader ends reading when its context does.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // of one copy
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// maxWindow bounds the history of a zstd stream, in bytes, and with it the
// memory for it. It is what zstd --long makes at most without being forced.
const maxWindow = 128 << 20

// inflate returns the content of r, going by its first bytes, as media types
// are often wrong.
func inflate(r io.Reader) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(r, 1<<20) // bytes; each read is a call of containerd
	head, err := buf.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	skippable := len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buf)
	case skippable || bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(buf, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(buf), nil
}
