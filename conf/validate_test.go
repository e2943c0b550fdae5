// SPDX-License-Identifier: Apache-2.0

package conf_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/conf"
)

// other returns a valid configuration that differs from the default in every
// key.
func other() *conf.Config {
	return &conf.Config{
		Root: "/r", Address: "/run/a.sock", RWMode: "dir", WritableLayer: "sparse",
		DefaultFS:        "xfs;nouuid;-f",
		AutoRemoveDevice: true, AsyncRemove: true, Runtime: "docker", RootfsQuota: 20 << 30, Tenant: 3,
		Turbo:   conf.Turbo{FS: []string{"ext4"}, Auto: true, Timeout: conf.Duration(time.Second), Containerd: "/run/c.sock"},
		Log:     conf.Log{Level: "debug", Format: "json"},
		Metrics: conf.Metrics{SnapshotterAddress: "127.0.0.1:9863", BlockdAddress: "/run/m.sock", Pprof: true},
		Blockd: conf.Blockd{
			Start: false, Binary: "/usr/bin/blockd", Address: "/run/b.sock", StateDir: "/s", Exporter: "tcmu",
			Patience: conf.Duration(time.Hour), MemoryLimit: 3 << 20,
		},
		Cache: conf.Cache{
			Dir: "/c", Size: 5 << 30, MinFree: 1, BlockSize: 4 << 10, ExtentSize: 1 << 20, MaxExtent: 1 << 20,
			MaxInflight: 8 << 20, FetchTimeout: conf.Duration(time.Second),
		},
		Loader: conf.Loader{Enabled: false, WholeFile: 2 << 20, PartOfFile: 4 << 20},
		Registry: conf.Registry{
			HostsDir: "/h", PlainHTTP: []string{"localhost", "10.0.0.1:5000"}, DockerConfig: "", CredFile: "",
			UserAgent: "it \"is\"\tme", DialTimeout: conf.Duration(time.Millisecond), IdleTimeout: conf.Duration(time.Minute),
			RetryBudget: 0, MaxPerHost: 1,
		},
		Download: conf.Download{
			Enable: true, Delay: 0, DelayExtra: conf.Duration(time.Second), Rate: 1, Tries: 1, Parallel: 3, ExtentSize: 1 << 20,
		},
		P2P:  conf.P2P{Kind: "proxy", URL: "http://127.0.0.1:4001", Timeout: conf.Duration(time.Millisecond), CAFile: "/ca.pem"},
		TCMU: conf.TCMU{QueueDepth: 1, DataArea: 1 << 20, CommandTimeout: conf.Duration(time.Second), DiskTimeout: conf.Duration(time.Minute)},
		Ublk: conf.Ublk{Queues: 2, QueueDepth: 32},
		Fuse: conf.Fuse{Dir: "/f", MaxBackground: 12},
		Sources: []conf.Source{
			{
				Match: "a/*", Kind: "s3", Layout: "oci", Timeout: conf.Duration(time.Millisecond), Bucket: "b", Prefix: "p/q", Endpoint: "http://s:9000",
				Region: "r", PathStyle: true, RequesterPays: true, Profile: "me", CredentialsFile: "/cred",
			},
			{Match: "*", Kind: "s3", Layout: "flat", Timeout: conf.Duration(time.Millisecond), Bucket: "b", Anonymous: true},
			{Match: "c", Kind: "http", Layout: "distribution", Timeout: conf.Duration(time.Millisecond), URL: "https://cdn/x?a=b"},
		},
	}
}

func TestValidate(t *testing.T) {
	if err := other().Validate(); err != nil {
		t.Errorf("valid configuration: %v", err)
	}
	for _, tc := range []struct {
		name   string
		change func(*conf.Config)
		keys   []string // that begin the lines of the error
	}{
		{"zero", func(c *conf.Config) { *c = conf.Config{} }, []string{
			"root", "address", "rw_mode", "writable_layer", "default_fs", "runtime", "turbo.fs", "turbo.timeout", "turbo.containerd",
			"log.level", "log.format", "blockd.address", "blockd.state_dir", "blockd.exporter",
			"cache.dir", "cache.block_size", "cache.extent_size", "cache.max_extent", "cache.fetch_timeout",
			"loader.whole_file", "loader.part_of_file",
			"registry.dial_timeout", "registry.idle_timeout", "registry.max_per_host", "p2p.timeout",
			"download.tries", "download.parallel", "download.extent_size",
			"tcmu.queue_depth", "tcmu.data_area", "tcmu.disk_timeout",
			"ublk.queue_depth", "fuse.dir", "fuse.max_background", "blockd.address", "blockd.state_dir",
		}},
		{"relative paths", func(c *conf.Config) { c.Root, c.Cache.Dir = "r", "../c" }, []string{"root", "cache.dir"}},
		{"long socket", func(c *conf.Config) { c.Address = "/" + strings.Repeat("x", 107) }, []string{"address"}},
		{"shared socket", func(c *conf.Config) { c.Blockd.Address = c.Address }, []string{"blockd.address"}},
		{"fs of four parts", func(c *conf.Config) { c.DefaultFS = "ext4;a;b;c" }, []string{"default_fs"}},
		{"fs with a path", func(c *conf.Config) { c.DefaultFS = "../ext4" }, []string{"default_fs"}},
		{"turbo twice", func(c *conf.Config) { c.Turbo.FS = []string{"ext4", "btrfs", "ext4"} }, []string{"turbo.fs", "turbo.fs"}},
		{"tcmu beyond the kernel's", func(c *conf.Config) {
			c.TCMU = conf.TCMU{QueueDepth: 1025, DataArea: 1 << 31, CommandTimeout: 1, DiskTimeout: conf.Duration(600 * time.Hour)}
		}, []string{"tcmu.queue_depth", "tcmu.data_area", "tcmu.command_timeout", "tcmu.disk_timeout"}},
		{"ublk beyond the driver's", func(c *conf.Config) { c.Ublk = conf.Ublk{Queues: 4097, QueueDepth: 4097} }, []string{"ublk.queues", "ublk.queue_depth"}},
		{"exporter unknown", func(c *conf.Config) { c.Blockd.Exporter = "nbd" }, []string{"blockd.exporter"}},
		{"block size", func(c *conf.Config) { c.Cache.BlockSize = 5000 }, []string{"cache.block_size"}},
		{"extent below block", func(c *conf.Config) { c.Cache.ExtentSize = 8 << 10 }, []string{"cache.extent_size"}},
		{"little inflight", func(c *conf.Config) { c.Cache.MaxInflight = 1 << 20 }, []string{"cache.max_inflight"}},
		{"plain_http URL", func(c *conf.Config) { c.Registry.PlainHTTP = []string{"http://a", "", "ok:1"} }, []string{"registry.plain_http", "registry.plain_http"}},
		{"user agent", func(c *conf.Config) { c.Registry.UserAgent = "a\r\nHost: b" }, []string{"registry.user_agent"}},
		{"metrics", func(c *conf.Config) { c.Metrics.SnapshotterAddress, c.Metrics.BlockdAddress = "9863", "a:b" }, []string{"metrics.snapshotter_address", "metrics.blockd_address"}},
		{"metrics shared", func(c *conf.Config) { c.Metrics.SnapshotterAddress, c.Metrics.BlockdAddress = ":1", ":1" }, []string{"metrics.blockd_address"}},
		{"pprof nowhere", func(c *conf.Config) { c.Metrics.Pprof = true }, []string{"metrics.pprof"}},
		{"agent unknown", func(c *conf.Config) {
			c.P2P = conf.P2P{Kind: "peer", URL: "agent:1?x", Timeout: c.Cache.FetchTimeout, CAFile: "ca"}
		}, []string{"p2p.kind", "p2p.url", "p2p.url", "p2p.timeout", "p2p.ca_file"}},
		{"agent of no kind", func(c *conf.Config) { c.P2P.URL = "http://agent" }, []string{"p2p.kind"}},
		{"source", func(c *conf.Config) { c.Sources = []conf.Source{{}} }, []string{"source[0].match", "source[0].layout", "source[0].timeout", "source[0].kind"}},
		{"sources", func(c *conf.Config) {
			c.Sources = other().Sources
			s := c.Sources
			s[0].Bucket, s[0].Endpoint, s[0].Region, s[0].CredentialsFile, s[0].URL = "b/c", "s3.example", "a/b", "cred", "https://h"
			s[1].Profile, s[1].Timeout = "me", c.Cache.FetchTimeout
			s[2].URL, s[2].Bucket, s[2].Match = "https://u:p@h", "b", "https://h/x"
		}, []string{
			"source[0].bucket", "source[0].url", "source[0].endpoint", "source[0].region", "source[0].credentials_file",
			"source[1].timeout", "source[1].anonymous", "source[2].match", "source[2].url", "source[2].kind",
		}},
		{"negative", func(c *conf.Config) {
			c.Tenant, c.RootfsQuota, c.Blockd.Patience, c.Blockd.MemoryLimit = -2, -1, -1, -1
			c.Cache.MinFree, c.Registry.RetryBudget = -1, -1
			c.Loader.WholeFile, c.Loader.PartOfFile = -1, -1
			c.Download = conf.Download{Delay: -1, DelayExtra: -1, Rate: -1, Tries: -1, Parallel: -1, ExtentSize: -1}
		}, []string{
			"rootfs_quota", "tenant", "blockd.patience", "blockd.memory_limit",
			"cache.min_free", "loader.whole_file", "loader.part_of_file", "registry.retry_budget", "download.delay", "download.delay_extra",
			"download.rate", "download.tries", "download.parallel", "download.extent_size",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := conf.Default()
			tc.change(cfg)
			if diff := cmp.Diff(tc.keys, keys(cfg.Validate())); diff != "" {
				t.Errorf("keys with problems (-want +got):\n%s", diff)
			}
		})
	}
}

// keys returns what stands before the first colon of each line of err.
func keys(err error) (keys []string) {
	if err == nil {
		return nil
	}
	for line := range strings.Lines(err.Error()) {
		key, _, _ := strings.Cut(line, ":")
		keys = append(keys, key)
	}
	return keys
}
