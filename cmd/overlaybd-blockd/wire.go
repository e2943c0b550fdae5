// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/cmd/internal/exporter"
	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon"
	"github.com/overlaybd-go/overlaybd/daemon/blockd"
	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/loader"
)

// A node is the daemon assembled: the one place where formats, exporters,
// cache and network meet.
type node struct {
	blockd  *blockd.Daemon
	metrics *prometheus.Registry
	lock    io.Closer // of the state directory: there is one process for it

	exporters exporters
	cache     *cache.Cache
	remote    *registry.Opener
	limited   *limit.Opener // remote, in turn
	sources   []io.Closer   // of the configuration's other sources
	downloads *download.Downloader
}

// wire builds a node from the bottom up.
func wire(ctx context.Context, cfg *conf.Config, log *slog.Logger) (*node, error) {
	n := &node{metrics: daemon.NewRegistry()}
	if err := n.wire(ctx, cfg, log); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *node) wire(ctx context.Context, cfg *conf.Config, log *slog.Logger) (err error) {
	if n.lock, err = daemon.Lock(ctx, filepath.Join(cfg.Blockd.StateDir, "lock")); err != nil {
		return err
	}
	n.remote = newRegistry(cfg)
	if n.cache, err = newCache(cfg); err != nil {
		return err
	}
	stats, err := daemon.StatsCollector("overlaybd_cache", n.cache.Stats)
	if err != nil {
		return err
	}
	n.metrics.MustRegister(stats)
	blobs, err := n.blobs(cfg)
	if err != nil {
		return err
	}
	n.downloads = newDownloads(cfg, blobs, log)
	if stats, err = daemon.StatsCollector("overlaybd_download", n.downloads.Stats); err != nil {
		return err
	}
	n.metrics.MustRegister(stats)
	n.blockd, err = blockd.New(blockd.Options{
		StateDir:  cfg.Blockd.StateDir,
		Blobs:     blobs,
		Patience:  time.Duration(cfg.Blockd.Patience),
		Logger:    log,
		Disk:      image.DiskOptions{Direct: true},
		Downloads: n.downloads,
		Warm:      n.remote.Warm,
		Reach:     n.reach,
		Loader:    loaderOptions(cfg),
	})
	if err != nil {
		return err
	}
	n.exporters = exporters{kinds: exporter.Kinds(), cfg: cfg, log: log, daemon: n.blockd}
	return n.exporters.start(ctx)
}

// reach asks for the size of a blob where reads of it begin, which leads to where
// they end.
func (n *node) reach(ctx context.Context, blob fetcher.Ref) error {
	b, err := n.limited.Open(ctx, blob)
	if err != nil {
		return err
	}
	return b.Close()
}

// blobs returns the tower of openers. From the top: bytes come from the cache;
// what is missing is tried again for seconds, each try at the configuration's
// other sources, the mirrors and then the origin, where it takes its turn among
// the requests to that host.
func (n *node) blobs(cfg *conf.Config) (fetcher.Opener, error) {
	n.limited = limit.New(n.remote, limit.Options{
		PerHost:        cfg.Registry.MaxPerHost,
		BackgroundRate: int64(cfg.Download.Rate),
	})
	others, err := newSources(cfg, n.remote, n.limited)
	n.sources = others.closers
	if err != nil {
		return nil, err
	}
	mirrored := mirror.New(n.remote, n.limited, mirror.Options{Elsewhere: others.places})
	stats, err := daemon.StatsCollector("overlaybd_sources", mirrored.Stats)
	if err != nil {
		return nil, err
	}
	n.metrics.MustRegister(stats)
	patient := retry.Options{Budget: time.Duration(cfg.Registry.RetryBudget)}
	cached := n.cache.Opener(retry.New(mirrored, patient))
	direct := n.cache.Opener(retry.New(others.buckets, patient))
	return fetcher.Schemes{"https": cached, "http": cached, "s3": direct, "file": file.Opener{}}, nil
}

func newRegistry(cfg *conf.Config) *registry.Opener {
	r := cfg.Registry
	return registry.New(registry.Options{
		HostsDir:    r.HostsDir,
		PlainHTTP:   r.PlainHTTP,
		Credentials: credentials(cfg),
		UserAgent:   r.UserAgent,
		Timeouts: rangeget.Timeouts{
			DialTimeout: time.Duration(r.DialTimeout),
			IdleTimeout: time.Duration(r.IdleTimeout),
		},
	})
}

func newCache(cfg *conf.Config) (*cache.Cache, error) {
	c := cfg.Cache
	return cache.Open(cache.Options{
		Dir:              c.Dir,
		Size:             int64(c.Size),
		MinFree:          int64(c.MinFree),
		BlockSize:        int(c.BlockSize),
		ExtentSize:       int(c.ExtentSize),
		MaxExtent:        int(c.MaxExtent),
		MaxInflightBytes: int64(c.MaxInflight),
		FetchTimeout:     time.Duration(c.FetchTimeout),
	})
}

func newDownloads(cfg *conf.Config, blobs fetcher.Opener, log *slog.Logger) *download.Downloader {
	d := cfg.Download
	return download.New(download.Options{
		Blobs:    blobs,
		Logger:   log,
		Off:      !d.Enable,
		Delay:    time.Duration(d.Delay),
		Jitter:   time.Duration(d.DelayExtra),
		Tries:    d.Tries,
		Parallel: d.Parallel,
		Extent:   int(d.ExtentSize),
		MinFree:  int64(cfg.Cache.MinFree),
	})
}

// loaderOptions returns nil if nothing is to be fetched ahead of programs.
func loaderOptions(cfg *conf.Config) *loader.Options {
	if !cfg.Loader.Enabled {
		return nil
	}
	return &loader.Options{Whole: int64(cfg.Loader.WholeFile), Part: int64(cfg.Loader.PartOfFile)}
}

// close takes the node down from the top.
func (n *node) close() error {
	errs := []error{n.exporters.close()}
	if n.downloads != nil {
		errs = append(errs, n.downloads.Close())
	}
	if n.cache != nil {
		errs = append(errs, n.cache.Close())
	}
	if n.remote != nil {
		errs = append(errs, n.remote.Close())
	}
	for _, s := range n.sources {
		errs = append(errs, s.Close())
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}
