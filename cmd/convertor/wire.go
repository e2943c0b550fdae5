// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/archive"
	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
	"github.com/overlaybd-go/overlaybd/image/convert/layout"
	"github.com/overlaybd-go/overlaybd/image/convert/memory"
	"github.com/overlaybd-go/overlaybd/image/convert/pipeline"
	"github.com/overlaybd-go/overlaybd/image/convert/remote"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// generation is part of the key of what is remembered: it grows whenever a
// change makes other bytes of the same input.
const generation = 1

// An assembly is all the parts of one conversion.
type assembly struct {
	*settings
	scratch string // removed at the end
	client  *remote.Client
	src     store.Source
	dst     store.Target
	memory  *memory.Memory // nil for none
	log     *slog.Logger
	closers []func() error // in the order of opening
}

// assemble opens everything. The assembly must be closed, also after an error.
func assemble(ctx context.Context, s *settings, log *slog.Logger) (*assembly, error) {
	a := &assembly{settings: s, log: log}
	for _, step := range []func(context.Context) error{a.makeScratch, a.dial, a.openSource, a.openTarget, a.openMemory} {
		if err := step(ctx); err != nil {
			return a, err
		}
	}
	return a, nil
}

// close closes everything, last things first.
func (a *assembly) close() error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	return errors.Join(errs...)
}

func (a *assembly) atEnd(f func() error) { a.closers = append(a.closers, f) }

// makeScratch makes a directory of this conversion's own in the work
// directory.
func (a *assembly) makeScratch(context.Context) error {
	if _, err := os.Stat(a.dir); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(a.dir, 0o755); err != nil {
			return fmt.Errorf("make the work directory, --dir: %w", err)
		}
		a.atEnd(func() error {
			_ = os.Remove(a.dir) // it is not empty if manifests were dumped
			return nil
		})
	}
	var err error
	if a.scratch, err = os.MkdirTemp(a.dir, "convert-"); err != nil {
		return fmt.Errorf("use the work directory, --dir: %w", err)
	}
	a.atEnd(func() error { return os.RemoveAll(a.scratch) })
	return nil
}

// dial makes the client of registries.
func (a *assembly) dial(context.Context) error {
	credentials := auth.Chain{auth.Docker(dockerConfig())}
	if a.credential != (fetcher.Credential{}) {
		given := auth.Static{}
		for _, r := range []store.Ref{a.from, a.to} {
			if h := r.Host(); h != "" {
				given[h] = a.credential
			}
		}
		credentials = auth.Chain{given}
	}
	a.client = remote.New(remote.Options{
		Credentials: credentials, HostsDir: a.hostsDir, TLS: a.tls, PlainHTTP: a.plain, UserAgent: "overlaybd-convertor/" + version,
	})
	a.atEnd(a.client.Close)
	return nil
}

// dockerConfig returns where docker login keeps credentials.
func dockerConfig() string {
	dir := os.Getenv("DOCKER_CONFIG")
	if home, err := os.UserHomeDir(); dir == "" && err == nil {
		dir = filepath.Join(home, ".docker")
	}
	return filepath.Join(dir, "config.json")
}

func (a *assembly) openSource(ctx context.Context) (err error) {
	switch r := a.from; r.Kind {
	case store.Layout:
		a.src, err = layout.Open(r.Location, r.Name)
	case store.OCIArchive:
		a.src, err = archive.Open(r.Location, r.Name)
	case store.DockerArchive:
		a.src, err = archive.OpenDocker(r.Location, r.Name)
	case store.Registry:
		a.src, err = a.client.Source(ctx, r)
	}
	if err == nil {
		a.atEnd(a.src.Close)
	}
	return err
}

func (a *assembly) openTarget(ctx context.Context) (err error) {
	switch r := a.to; {
	case a.noUpload:
		a.dst = nowhere{}
	case r.Kind == store.Layout:
		a.dst, err = layout.Create(r.Location, r.Name)
	case r.Kind == store.OCIArchive:
		a.dst, err = archive.Create(r.Location, r.Name)
	default:
		a.dst, err = a.client.Target(ctx, r)
	}
	if err != nil {
		return err
	}
	a.atEnd(a.dst.Close)
	if a.dump {
		a.dst = newDump(a.dst, a.dir)
	}
	return nil
}

// openMemory opens the deduplication database.
func (a *assembly) openMemory(ctx context.Context) error {
	if a.dbStr == "" || a.noUpload {
		return nil
	}
	db, err := dedup.Open(ctx, a.dbType+":"+a.dbStr)
	if err != nil {
		return err
	}
	a.atEnd(db.Close)
	target, err := a.client.Target(ctx, a.to)
	if err != nil {
		return err
	}
	// The file system below a layer is read here and there, in small pieces,
	// some of them often.
	blocks, err := cache.Open(cache.Options{
		Dir: filepath.Join(a.scratch, "cache"), Size: 4 << 30, MinFree: -1, MaxExtent: 1 << 20, MaxInflightBytes: 8 << 20,
	})
	if err != nil {
		return err
	}
	a.atEnd(blocks.Close)
	layers, manifests, err := a.tags()
	if err != nil {
		return err
	}
	host, repo, _ := strings.Cut(a.to.Location, "/")
	a.memory = memory.New(db, cached{target, blocks}, memory.Options{
		Host: strings.ToLower(host), Repo: repo, Layers: layers, Manifests: manifests, Log: a.log,
		MediaType: func(source string) string {
			if a.oci || a.referrer {
				return convert.OCIType(source)
			}
			return source
		},
		Document: func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
			return convert.ReadDocument(ctx, target, desc)
		},
	})
	return nil
}

// tags returns what besides the source determines the bytes of layers and of
// manifests.
func (a *assembly) tags() (layers, manifests dedup.Tag, err error) {
	options := map[string]string{
		"algorithm": a.algorithm, "bs": strconv.Itoa(a.blockSize), "vsize": strconv.Itoa(a.vsize), "fs": "ext4",
	}
	if !a.mkfs {
		delete(options, "vsize")
		if options["base"], err = fileDigest(a.baseLayer); err != nil {
			return "", "", err
		}
	}
	layers = dedup.NewTag(generation, options)
	options["flatten"], options["referrer"] = strconv.FormatBool(a.flatten), strconv.FormatBool(a.referrer)
	return layers, dedup.NewTag(generation, options), nil
}

func fileDigest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h).String(), nil
}

// cached is a repository whose blobs are read through a cache.
type cached struct {
	*remote.Repository
	blocks *cache.Cache
}

func (c cached) Blob(ctx context.Context, desc ocispec.Descriptor) (fetcher.Blob, error) {
	b, err := c.Repository.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	through, err := c.blocks.Blob(desc.Digest, b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return through, nil
}

// documents are read from the source and written to the target.
type documents struct {
	store.Source
	dst store.Target
}

func (d documents) Push(ctx context.Context, desc ocispec.Descriptor, text []byte, children []ocispec.Descriptor) error {
	return d.dst.Push(ctx, desc, text, children)
}

// partial are documents of a source that may lack what its indexes list.
type partial struct {
	documents
	convert.PartialStore
}

// converter returns the converter of the parts.
func (a *assembly) converter(report func(pipeline.Event)) *convert.Converter {
	opts := pipeline.Options{
		Dir: a.scratch, VirtualSize: int64(a.vsize) << 30, Flatten: a.flatten, Compression: a.compression, Report: report,
	}
	if !a.mkfs {
		opts.BaseLayer = a.baseLayer
	}
	c := &convert.Converter{
		Store: documents{a.src, a.dst}, Platform: a.platforms, OCI: a.oci, Parallel: a.concurrency,
		Skipped: func(desc ocispec.Descriptor, reason string) {
			a.log.Warn("left out", slog.String("digest", desc.Digest.String()), slog.String("reason", reason))
		},
	}
	if p, ok := a.src.(convert.PartialStore); ok && a.from.Kind != store.Registry {
		c.Store = partial{documents{a.src, a.dst}, p}
	}
	if a.concurrency == 0 {
		c.Parallel = -1
	}
	if a.referrer {
		c.ArtifactType = convert.ArtifactTypeNative
	}
	if a.memory != nil {
		opts.Cache = a.memory
		if !a.dump { // what is remembered is not written again
			c.Memory = a.memory
		}
	}
	c.Builder = pipeline.New(a.src, a.dst, opts)
	return c
}

// convertImage does what the command is for.
func convertImage(ctx context.Context, s *settings, stdout, stderr io.Writer) (err error) {
	view := newView(stderr)
	log := slog.New(slog.NewTextHandler(view, &slog.HandlerOptions{Level: logLevel(s.verbose), ReplaceAttr: dropTime}))
	a, err := assemble(ctx, s, log)
	defer func() {
		view.close()
		err = errors.Join(err, a.close())
	}()
	if err != nil {
		return err
	}
	total := newTotal()
	source, err := a.src.Resolve(ctx)
	if err != nil {
		return err
	}
	log.Debug("found", slog.String("source", s.from.String()), slog.String("digest", source.Digest.String()), slog.String("type", source.MediaType))
	made, err := a.converter(func(e pipeline.Event) { view.show(e); total.add(e) }).Convert(ctx, source)
	if err != nil {
		return fmt.Errorf("convert %s: %w", s.from, err)
	}
	if err := a.dst.Tag(ctx, made); err != nil {
		return err
	}
	view.close()
	return total.print(stdout, s, source, made)
}
