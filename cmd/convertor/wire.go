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
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/zfile"
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
	outputs []*output
	log     *slog.Logger
	closers []func() error // in the order of opening
}

// An output is an image being written.
type output struct {
	goal
	dst    store.Target
	repo   *remote.Repository // dst, if it is in a registry
	memory *memory.Memory     // nil for none
}

// assemble opens everything. The assembly must be closed, also after an error.
func assemble(ctx context.Context, s *settings, log *slog.Logger) (*assembly, error) {
	a := &assembly{settings: s, log: log}
	for _, step := range []func(context.Context) error{a.makeScratch, a.dial, a.openSource, a.openTargets, a.openMemory} {
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
		for _, h := range a.hosts() {
			given[h] = a.credential
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

func (a *assembly) openTargets(ctx context.Context) error {
	for _, g := range a.goals {
		o := &output{goal: g}
		if err := o.open(ctx, a); err != nil {
			return err
		}
		a.atEnd(o.dst.Close)
		if a.dump {
			dir := a.dir
			if g.format != convert.Native {
				dir = filepath.Join(dir, g.format.String())
			}
			o.dst = newDump(o.dst, dir)
		}
		a.outputs = append(a.outputs, o)
	}
	return nil
}

func (o *output) open(ctx context.Context, a *assembly) (err error) {
	switch r := o.to; {
	case a.noUpload:
		o.dst = nowhere{}
	case r.Kind == store.Layout:
		o.dst, err = layout.Create(r.Location, r.Name)
	case r.Kind == store.OCIArchive:
		o.dst, err = archive.Create(r.Location, r.Name)
	default:
		o.repo, err = a.client.Target(ctx, r)
		o.dst = o.repo
		if r.Name == "" {
			o.dst = nameless{o.repo}
		}
	}
	return err
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
	// The file system below a layer is read here and there, in small pieces,
	// some of them often.
	blocks, err := cache.Open(cache.Options{
		Dir: filepath.Join(a.scratch, "cache"), Size: 4 << 30, MinFree: -1, MaxExtent: 1 << 20, MaxInflightBytes: 8 << 20,
	})
	if err != nil {
		return err
	}
	a.atEnd(blocks.Close)
	for _, o := range a.outputs {
		if err := o.remember(a, db, blocks); err != nil {
			return err
		}
	}
	return nil
}

// remember makes the output's memory.
func (o *output) remember(a *assembly, db *dedup.DB, blocks *cache.Cache) error {
	host, repo, _ := strings.Cut(o.to.Location, "/")
	opts := memory.Options{
		Host: strings.ToLower(host), Repo: repo, Log: a.log,
		MediaType: func(source string) string {
			if a.oci || o.referrer {
				return convert.OCIType(source)
			}
			return source
		},
		Document: func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
			return convert.ReadDocument(ctx, o.repo, desc)
		},
	}
	options, err := a.determinants(o.format)
	if err != nil {
		return err
	}
	opts.Layers = layerTags(o.format, options)
	options["flatten"], options["referrer"] = strconv.FormatBool(a.flatten), strconv.FormatBool(o.referrer)
	opts.Manifests = dedup.NewTag(generation, options)
	o.memory = memory.New(db, cached{o.repo, blocks}, opts)
	return nil
}

// determinants returns what besides the source determines the bytes of an
// image's layers.
func (a *assembly) determinants(f convert.Format) (options map[string]string, err error) {
	options = map[string]string{
		"algorithm": a.algorithm, "bs": strconv.Itoa(a.blockSize), "vsize": strconv.Itoa(a.vsize), "fs": a.fsType,
	}
	if a.compression.Level != zfile.Normal {
		options["level"] = a.level
	}
	if f != convert.Native {
		options["kind"], options["span"] = f.String(), strconv.Itoa(gzidx.DefaultSpan)
	}
	if !a.mkfs {
		delete(options, "vsize")
		options["base"], err = fileDigest(a.baseLayer)
	}
	return options, err
}

// layerTags returns the tags of layers. A turbo layer holds the index of one
// blob: the same tar compressed otherwise makes another layer.
func layerTags(f convert.Format, options map[string]string) func(convert.Layer) dedup.Tag {
	tag := dedup.NewTag(generation, options)
	if f == convert.Native {
		return func(convert.Layer) dedup.Tag { return tag }
	}
	return func(l convert.Layer) dedup.Tag {
		return dedup.NewTag(generation, map[string]string{"all": string(tag), "target": l.Source.Digest.String()})
	}
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

// pipeline returns the builder of the layers.
func (a *assembly) pipeline(report func(pipeline.Event)) *pipeline.Pipeline {
	opts := pipeline.Options{
		Dir: a.scratch, VirtualSize: int64(a.vsize) << 30, Flatten: a.flatten, Compression: a.compression, Report: report,
	}
	if !a.mkfs {
		opts.BaseLayer = a.baseLayer
	}
	outputs := make([]pipeline.Output, len(a.outputs))
	for i, o := range a.outputs {
		outputs[i] = pipeline.Output{Format: o.format, FSType: a.fsType, Target: o.dst}
		if o.memory != nil {
			outputs[i].Cache = o.memory
		}
		if o.format == convert.Turbo && !a.noUpload && o.foreign(a.from) {
			outputs[i].Foreign = true
			outputs[i].Mount = o.mount(a.from)
		}
	}
	return pipeline.New(a.src, opts, outputs...)
}

// mount returns how layers of the source get to be the output's without being
// copied, nil if they cannot.
func (o *output) mount(from store.Ref) func(context.Context, ocispec.Descriptor) (bool, error) {
	if o.repo == nil || from.Host() != o.to.Host() {
		return nil
	}
	_, repo, _ := strings.Cut(from.Location, "/")
	return func(ctx context.Context, desc ocispec.Descriptor) (bool, error) { return o.repo.Mount(ctx, desc, repo) }
}

// converter returns the converter of the parts.
func (a *assembly) converter(report func(pipeline.Event)) *convert.Converter {
	c := &convert.Converter{
		Source: a.src, Builder: a.pipeline(report), Platform: a.platforms, Parallel: a.concurrency,
		Skipped: func(desc ocispec.Descriptor, reason string) {
			a.log.Warn("left out", slog.String("digest", desc.Digest.String()), slog.String("reason", reason))
		},
	}
	if a.from.Kind == store.Registry {
		c.Source = struct{ convert.Source }{a.src} // it has all that its indexes list
	}
	if a.concurrency == 0 {
		c.Parallel = -1
	}
	for _, o := range a.outputs {
		out := convert.Output{Format: o.format, Target: o.dst, OCI: a.oci, Referrer: o.referrer}
		if a.fsType != "ext4" { // which readers take for granted
			out.FSType = a.fsType
		}
		if o.memory != nil && !a.dump { // what is remembered is not written again
			out.Memory = o.memory
		}
		c.Outputs = append(c.Outputs, out)
	}
	return c
}

// convertImage does what the command is for.
func convertImage(ctx context.Context, s *settings, stdout, stderr io.Writer) (err error) {
	view := newView(stderr, s.goals)
	log := slog.New(slog.NewTextHandler(view, &slog.HandlerOptions{Level: logLevel(s.verbose), ReplaceAttr: dropTime}))
	a, err := assemble(ctx, s, log)
	defer func() {
		view.close()
		err = errors.Join(err, a.close())
	}()
	if err != nil {
		return err
	}
	total := newTotal(s)
	if total.source, err = a.src.Resolve(ctx); err != nil {
		return err
	}
	log.Debug("found", slog.String("source", s.from.String()), slog.String("digest", total.source.Digest.String()), slog.String("type", total.source.MediaType))
	made, err := a.converter(func(e pipeline.Event) { view.show(e); total.add(e) }).Convert(ctx, total.source)
	if err != nil {
		return fmt.Errorf("convert %s: %w", s.from, err)
	}
	for i, o := range a.outputs {
		if err := o.dst.Tag(ctx, made[i]); err != nil {
			return err
		}
	}
	view.close()
	return total.print(stdout, made)
}
