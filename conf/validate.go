// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSocketPath is the longest path, in bytes, that sockaddr_un holds beside
// its final zero.
const maxSocketPath = 107

// maxTimeout is the longest that the kernel counts in milliseconds of 32 bits,
// signed.
const maxTimeout = math.MaxInt32 * time.Millisecond

// What a background download may be told: each of its requests is held in
// memory.
const (
	maxTries   = 1000
	minRequest = 4 * kib
	maxRequest = 64 * mib
)

// problems collects what is wrong with a configuration.
type problems []error

// check notes a problem with key unless ok.
func (p *problems) check(ok bool, key, format string, args ...any) {
	if !ok {
		*p = append(*p, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
}

// Validate returns every problem of the configuration, joined, each beginning
// with the key it is about.
func (c *Config) Validate() error {
	var p problems
	c.validateSnapshotter(&p)
	c.Turbo.validate(&p)
	c.Log.validate(&p)
	c.Metrics.validate(&p)
	c.Blockd.validate(&p)
	c.Cache.validate(&p)
	c.Loader.validate(&p)
	c.Registry.validate(&p)
	c.P2P.validate(&p, c.Cache.FetchTimeout)
	c.Download.validate(&p)
	for i, s := range c.Sources {
		s.validate(&p, fmt.Sprintf("source[%d].", i), c.Cache.FetchTimeout)
	}
	c.TCMU.validate(&p)
	p.between("ublk.queues", c.Ublk.Queues, 0, 4096) // the driver's limits
	p.between("ublk.queue_depth", c.Ublk.QueueDepth, 1, 4096)
	p.path("fuse.dir", c.Fuse.Dir)
	p.between("fuse.max_background", c.Fuse.MaxBackground, 1, 65535) // the kernel's field is 16 bits wide
	p.check(c.Address != c.Blockd.Address, "blockd.address", "%q is also the snapshotter's address", c.Blockd.Address)
	p.check(c.Root != c.Blockd.StateDir, "blockd.state_dir", "%q is also the snapshotter's root", c.Blockd.StateDir)
	return errors.Join(p...)
}

func (c *Config) validateSnapshotter(p *problems) {
	p.path("root", c.Root)
	p.socket("address", c.Address)
	p.oneOf("rw_mode", c.RWMode, "overlayfs", "dir", "dev")
	p.oneOf("writable_layer", c.WritableLayer, "append", "sparse")
	fs, options, _ := strings.Cut(c.DefaultFS, ";")
	p.check(fs != "" && strings.Trim(fs, "abcdefghijklmnopqrstuvwxyz0123456789") == "", "default_fs", "%q does not begin with the name of a file system", c.DefaultFS)
	p.check(strings.Count(options, ";") <= 1, "default_fs", "%q has more than three parts", c.DefaultFS)
	p.oneOf("runtime", c.Runtime, "containerd", "docker")
	p.check(c.RootfsQuota >= 0, "rootfs_quota", "is negative")
	p.check(c.Tenant >= -1, "tenant", "%d is neither -1 nor a number from 0", c.Tenant)
}

func (t *Turbo) validate(p *problems) {
	p.check(len(t.FS) > 0, "turbo.fs", "is empty")
	for i, fs := range t.FS {
		p.oneOf("turbo.fs", fs, "erofs", "ext4")
		p.check(!slices.Contains(t.FS[:i], fs), "turbo.fs", "%q is there twice", fs)
	}
	p.check(t.Timeout > 0, "turbo.timeout", "is not positive")
	p.socket("turbo.containerd", t.Containerd)
}

func (l *Log) validate(p *problems) {
	p.oneOf("log.level", l.Level, "debug", "info", "warn", "error")
	p.oneOf("log.format", l.Format, "auto", "text", "json")
}

func (m *Metrics) validate(p *problems) {
	p.listen("metrics.snapshotter_address", m.SnapshotterAddress)
	p.listen("metrics.blockd_address", m.BlockdAddress)
	off := m.SnapshotterAddress == "" && m.BlockdAddress == ""
	p.check(off || m.SnapshotterAddress != m.BlockdAddress, "metrics.blockd_address", "%q is also the snapshotter's", m.BlockdAddress)
	p.check(!off || !m.Pprof, "metrics.pprof", "is on, but both addresses are empty")
}

func (b *Blockd) validate(p *problems) {
	p.maybePath("blockd.binary", b.Binary)
	p.socket("blockd.address", b.Address)
	p.path("blockd.state_dir", b.StateDir)
	p.oneOf("blockd.exporter", b.Exporter, "auto", "tcmu", "ublk", "fuse")
	p.check(b.Patience >= 0, "blockd.patience", "is negative")
	p.check(b.MemoryLimit >= 0, "blockd.memory_limit", "is negative")
}

func (c *Cache) validate(p *problems) {
	p.path("cache.dir", c.Dir)
	p.check(powerOfTwo(c.BlockSize) && c.BlockSize >= 4*kib, "cache.block_size", "%v is not a power of two from 4KiB", c.BlockSize)
	p.check(powerOfTwo(c.ExtentSize) && c.ExtentSize >= c.BlockSize, "cache.extent_size", "%v is not a power of two from block_size", c.ExtentSize)
	p.check(powerOfTwo(c.MaxExtent) && c.MaxExtent >= c.ExtentSize, "cache.max_extent", "%v is not a power of two from extent_size", c.MaxExtent)
	p.check(c.MaxInflight >= c.MaxExtent, "cache.max_inflight", "%v is less than max_extent", c.MaxInflight)
	p.check(c.Size >= c.MaxExtent, "cache.size", "%v is less than max_extent", c.Size)
	p.check(c.MinFree >= 0, "cache.min_free", "is negative")
	p.check(c.FetchTimeout > 0, "cache.fetch_timeout", "is not positive")
}

// maxAhead bounds what one file may make the loader fetch.
const maxAhead = 64 * mib

func (l *Loader) validate(p *problems) {
	p.check(l.WholeFile > 0 && l.WholeFile <= maxAhead, "loader.whole_file", "%v is not between 1 and %v", l.WholeFile, maxAhead)
	p.check(l.PartOfFile > 0 && l.PartOfFile <= maxAhead, "loader.part_of_file", "%v is not between 1 and %v", l.PartOfFile, maxAhead)
}

func (r *Registry) validate(p *problems) {
	p.maybePath("registry.hosts_dir", r.HostsDir)
	p.maybePath("registry.docker_config", r.DockerConfig)
	p.maybePath("registry.cred_file", r.CredFile)
	for _, host := range r.PlainHTTP {
		p.check(host != "" && !strings.ContainsAny(host, "/@? \t\r\n"), "registry.plain_http", "%q is not \"host\" or \"host:port\"", host)
	}
	p.check(!strings.ContainsAny(r.UserAgent, "\r\n\x00"), "registry.user_agent", "has control characters")
	p.check(r.DialTimeout > 0, "registry.dial_timeout", "is not positive")
	p.check(r.IdleTimeout > 0, "registry.idle_timeout", "is not positive")
	p.check(r.RetryBudget >= 0, "registry.retry_budget", "is negative")
	p.check(r.MaxPerHost >= 1, "registry.max_per_host", "%d is less than 1", r.MaxPerHost)
}

func (d *Download) validate(p *problems) {
	p.check(d.Delay >= 0, "download.delay", "is negative")
	p.check(d.DelayExtra >= 0, "download.delay_extra", "is negative")
	p.check(d.Rate >= 0, "download.rate", "is negative")
	p.between("download.tries", d.Tries, 1, maxTries)
	p.between("download.parallel", d.Parallel, 1, 64)
	p.check(d.ExtentSize >= minRequest && d.ExtentSize <= maxRequest, "download.extent_size", "%v is not between %v and %v", d.ExtentSize, minRequest, maxRequest)
}

func (t *TCMU) validate(p *problems) {
	p.between("tcmu.queue_depth", t.QueueDepth, 1, 1024) // what the loopback host takes
	p.check(t.DataArea >= mib && t.DataArea <= 2047*mib, "tcmu.data_area", "%v is not between 1MiB and 2047MiB", t.DataArea)
	const second, most = Duration(time.Second), Duration(maxTimeout)
	p.check(t.CommandTimeout == 0 || t.CommandTimeout >= second && t.CommandTimeout <= most, "tcmu.command_timeout", "%v is neither 0 nor between 1s and %v", t.CommandTimeout, most)
	p.check(t.DiskTimeout >= second && t.DiskTimeout <= most, "tcmu.disk_timeout", "%v is not between 1s and %v", t.DiskTimeout, most)
}

func (p *problems) between(key string, n, least, most int) {
	p.check(n >= least && n <= most, key, "%d is not between %d and %d", n, least, most)
}

func (p *problems) oneOf(key, value string, allowed ...string) {
	p.check(slices.Contains(allowed, value), key, "%q is not one of %s", value, strings.Join(allowed, ", "))
}

func (p *problems) path(key, path string) {
	p.check(filepath.IsAbs(path) && !strings.Contains(path, "\x00"), key, "%q is not an absolute path", path)
}

func (p *problems) maybePath(key, path string) {
	if path != "" {
		p.path(key, path)
	}
}

func (p *problems) socket(key, path string) {
	p.path(key, path)
	p.check(len(path) <= maxSocketPath, key, "%d bytes are too long for a unix socket (%d)", len(path), maxSocketPath)
}

// listen accepts "host:port", the path of a unix socket, and nothing.
func (p *problems) listen(key, address string) {
	switch {
	case address == "":
	case address[0] == '/':
		p.socket(key, address)
	default:
		_, port, err := net.SplitHostPort(address)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		p.check(err == nil, key, "%q is neither host:port nor the path of a unix socket", address)
	}
}

func powerOfTwo(s Size) bool { return s > 0 && s&(s-1) == 0 }
