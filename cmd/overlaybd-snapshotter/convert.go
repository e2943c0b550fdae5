// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// A converter makes TurboOCI layers on the node. Of the layers below it reads
// the metadata, from their files or from a registry.
type converter struct {
	cfg  *conf.Config
	life context.Context //nolint:containedctx // ends with the service, which waits for conversions
}

var _ snapshotter.Converter = converter{}

// Convert implements [snapshotter.Converter].
func (c converter) Convert(ctx context.Context, job snapshotter.Conversion) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	below, err := c.lowers(ctx, job)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, below.close()) }()
	if job.DiffID == "" {
		if job.DiffID, err = diffID(ctx, job.Layer); err != nil {
			return err
		}
	}
	fsType := job.FSType
	if job.Below != nil {
		if fsType, err = below.fsType(ctx); err != nil {
			return err
		}
	}
	chain := build.New(build.Options{Dir: job.Dir, FSType: fsType, Target: true})
	defer func() { err = errors.Join(err, chain.Close()) }()
	if err := below.push(ctx, chain); err != nil {
		return err
	}
	return buildLayer(ctx, chain, job)
}

// buildLayer writes the files of the layer.
func buildLayer(ctx context.Context, chain *build.Chain, job snapshotter.Conversion) (err error) {
	layer, err := os.Open(job.Layer)
	if err != nil {
		return err
	}
	defer layer.Close()
	defer context.AfterFunc(ctx, func() { _ = layer.Close() })() // ends reading ahead
	dst := func(name string) string { return filepath.Join(job.Dir, name) }
	out, err := os.Create(dst("overlaybd.commit"))
	if err != nil {
		return err
	}
	index, err := os.Create(dst("index"))
	if err != nil {
		return errors.Join(err, out.Close())
	}
	kind, err := writeLayer(ctx, chain, out, index, bufio.NewReaderSize(layer, 1<<20), job.DiffID)
	if err := errors.Join(err, out.Close(), index.Close()); err != nil {
		return err
	}
	if kind == "" {
		return os.Remove(dst("index"))
	}
	return os.Rename(dst("index"), dst(string(kind)+".meta"))
}

func writeLayer(ctx context.Context, chain *build.Chain, out, index io.Writer, layer io.Reader, diffID digest.Digest) (build.Kind, error) {
	buf, side := bufio.NewWriterSize(out, 1<<20), bufio.NewWriter(index)
	z, err := zfile.NewWriter(buf, zfile.Options{})
	if err != nil {
		return "", err
	}
	kind, err := chain.BuildTarget(ctx, z, layer, build.Layer{DiffID: diffID, Index: side})
	if err != nil {
		_ = z.Close() // what is under way in it ends
		return "", err
	}
	return kind, errors.Join(z.Close(), buf.Flush(), side.Flush())
}

// diffID returns the digest of what the file layer holds, for a differ that did
// not tell.
func diffID(ctx context.Context, layer string) (digest.Digest, error) {
	f, err := os.Open(layer)
	if err != nil {
		return "", err
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.Close() })()
	content, err := build.Decompress(f)
	if err != nil {
		return "", err
	}
	defer content.Close()
	h := sha256.New()
	if _, err := io.Copy(h, content); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}
