// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// lowers are the layers that another is built on.
type lowers struct {
	volume  *spec.Volume // nil for none
	blobs   fetcher.Opener
	closers []io.Closer // in the order of their making
}

// lowers returns the layers below a conversion, to be closed.
func (c converter) lowers(ctx context.Context, job snapshotter.Conversion) (*lowers, error) {
	l := &lowers{volume: job.Below, blobs: fetcher.Schemes{"file": file.Opener{}}}
	if job.Below == nil || !slices.ContainsFunc(job.Below.Lowers, func(l spec.Lower) bool { return localFile(l) == "" }) {
		return l, nil
	}
	remote, err := l.registry(c.cfg, filepath.Join(job.Dir, "cache"))
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.blobs = fetcher.Schemes{"file": file.Opener{}, "https": remote, "http": remote}
	if l.volume, err = image.Localize(ctx, job.Below, l.blobs); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// cacheSize bounds what of remote layers is kept during a conversion, in bytes.
const cacheSize = 1 << 30

// registry returns what opens blobs of registries. Their metadata are read in
// small pieces, and more than once: a cache in dir goes between.
func (l *lowers) registry(cfg *conf.Config, dir string) (fetcher.Opener, error) {
	r := registry.New(registry.Options{
		HostsDir:    cfg.Registry.HostsDir,
		PlainHTTP:   cfg.Registry.PlainHTTP,
		Credentials: auth.Chain{auth.File(cfg.Registry.CredFile), auth.Docker(cfg.Registry.DockerConfig)},
		UserAgent:   cfg.Registry.UserAgent,
	})
	l.closers = append(l.closers, r)
	kept, err := cache.Open(cache.Options{Dir: dir, Size: cacheSize})
	if err != nil {
		return nil, err
	}
	l.closers = append(l.closers, kept)
	return kept.Opener(retry.New(r, retry.Options{Budget: time.Duration(cfg.Registry.RetryBudget)})), nil
}

func (l *lowers) close() error {
	var errs []error
	for _, c := range slices.Backward(l.closers) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// each opens the blob of every layer and hands it to take, which owns it unless
// it fails. The name is how errors call it.
func (l *lowers) each(ctx context.Context, take func(lower spec.Lower, b fetcher.Blob, name string) error) error {
	if l.volume == nil {
		return nil
	}
	for _, lower := range l.volume.Lowers {
		ref, name := fetcher.Ref{URL: l.volume.BlobURL(lower), Digest: lower.Digest, Size: lower.Size}, "layer "+lower.Digest.String()
		if path := localFile(lower); path != "" {
			ref, name = fetcher.Ref{URL: (&url.URL{Scheme: "file", Path: path}).String()}, "layer "+path
		}
		b, err := l.blobs.Open(ctx, ref)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		if err := take(lower, b, name); err != nil {
			return errors.Join(err, b.Close())
		}
	}
	return nil
}

// push puts the layers on chain.
func (l *lowers) push(ctx context.Context, chain *build.Chain) error {
	return l.each(ctx, func(lower spec.Lower, b fetcher.Blob, name string) error {
		if hasTarget(lower) {
			return chain.PushTarget(ctx, b, absent{}, name)
		}
		return chain.Push(ctx, b, name)
	})
}

// fsType returns the type of the file system that the layers make up.
func (l *lowers) fsType(ctx context.Context) (_ string, err error) {
	var all []*lsmt.Layer
	defer func() {
		for _, layer := range all {
			err = errors.Join(err, layer.Close())
		}
	}()
	err = l.each(ctx, func(lower spec.Lower, b fetcher.Blob, name string) error {
		open := image.OpenLayer
		if hasTarget(lower) {
			open = func(ctx context.Context, b fetcher.Blob, name string) (*lsmt.Layer, error) {
				return image.OpenTargetLayer(ctx, b, absent{}, name)
			}
		}
		layer, err := open(ctx, b, name)
		if err == nil {
			all = append(all, layer)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	disk, err := lsmt.Merge(all)
	if err != nil {
		return "", err
	}
	var magic [4]byte
	if _, err := disk.ReadAt(ctx, magic[:], superblock); err != nil {
		return "", err
	}
	if binary.LittleEndian.Uint32(magic[:]) == erofsMagic {
		return "erofs", nil
	}
	return "ext4", nil // or what cannot be edited, of which whoever tries tells
}

// Where EROFS has its superblock, in bytes, and how that begins.
const (
	superblock = 1024
	erofsMagic = 0xE0F5E1E2
)

func hasTarget(l spec.Lower) bool { return l.TargetDigest != "" || l.TargetFile != "" }

// localFile returns the file with the blob of l, if it is on the node: where the
// block daemon finds it.
func localFile(l spec.Lower) string {
	var names []string
	if l.File != "" {
		names = append(names, l.File)
	}
	if l.Dir != "" {
		for _, name := range []string{"overlaybd.commit", ".commit", "overlaybd.sealed"} {
			names = append(names, filepath.Join(l.Dir, name))
		}
	}
	for _, name := range names {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			return name // where it cannot be read, opening it tells
		}
	}
	return ""
}

// absent stands for the targets of layers that another is built on: what lies
// in them is the content of files, which nothing here reads.
type absent struct{}

var errAbsent = errors.New("the content of a lower layer's files is not here")

func (absent) ReadAt(context.Context, []byte, int64) (int, error) { return 0, errAbsent }

// Size is beyond any that matters.
func (absent) Size() int64 { return 1 << 62 }

func (absent) Close() error { return nil }
