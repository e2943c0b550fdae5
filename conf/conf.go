// SPDX-License-Identifier: Apache-2.0

// Package conf is the one configuration file of both daemons: its schema, its
// defaults and its checks. It reads no environment variable and nothing but
// the file it is given.
//
// The one thing to know: config.toml beside this code is the documentation of
// every key, the result of writing [Default], and the template [Config.WriteTOML]
// fills in.
package conf

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultPath is where both daemons look for their configuration.
const DefaultPath = "/etc/overlaybd-snapshotter/config.toml"

// maxFile is the largest configuration file, in bytes, that is read. The
// sample is under 8 KiB.
const maxFile = 1 << 20

// Config is the whole file. Keys at the top and turbo belong to the snapshotter;
// log, metrics and registry to both daemons; the other sections to blockd.
type Config struct {
	Root             string `toml:"root"`
	Address          string `toml:"address"`
	RWMode           string `toml:"rw_mode"`        // overlayfs, dir, dev
	WritableLayer    string `toml:"writable_layer"` // append, sparse
	DefaultFS        string `toml:"default_fs"`     // fs[;mountopts[;mkfsopts]]
	AutoRemoveDevice bool   `toml:"auto_remove_device"`
	AsyncRemove      bool   `toml:"async_remove"`
	Runtime          string `toml:"runtime"`      // containerd, docker
	RootfsQuota      Size   `toml:"rootfs_quota"` // 0: none
	Tenant           int    `toml:"tenant"`       // -1 or 0: none

	Turbo    Turbo    `toml:"turbo"`
	Log      Log      `toml:"log"`
	Metrics  Metrics  `toml:"metrics"`
	Blockd   Blockd   `toml:"blockd"`
	Cache    Cache    `toml:"cache"`
	Loader   Loader   `toml:"loader"`
	Registry Registry `toml:"registry"`
	P2P      P2P      `toml:"p2p"`
	Download Download `toml:"download"`
	TCMU     TCMU     `toml:"tcmu"`
	Ublk     Ublk     `toml:"ublk"`
	Fuse     Fuse     `toml:"fuse"`
	Sources  []Source `toml:"source"` // [[source]], in the order in which they are tried
}

// Turbo is how images that were not converted are read lazily.
type Turbo struct {
	FS         []string `toml:"fs"` // erofs, ext4; best first
	Auto       bool     `toml:"auto"`
	Timeout    Duration `toml:"timeout"`
	Containerd string   `toml:"containerd"` // socket
}

// Log says what is logged, and how.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // auto, text, json
}

// Metrics is the HTTP endpoint of each daemon. An empty address turns it off.
type Metrics struct {
	SnapshotterAddress string `toml:"snapshotter_address"`
	BlockdAddress      string `toml:"blockd_address"`
	Pprof              bool   `toml:"pprof"`
}

// Blockd is the block daemon, and how the snapshotter finds or starts it.
type Blockd struct {
	Start       bool     `toml:"start"`
	Binary      string   `toml:"binary"` // empty: beside the snapshotter's own
	Address     string   `toml:"address"`
	StateDir    string   `toml:"state_dir"`
	Exporter    string   `toml:"exporter"` // auto, tcmu, ublk, fuse
	Patience    Duration `toml:"patience"`
	MemoryLimit Size     `toml:"memory_limit"` // 0: none
}

// Cache is the block cache on local disk.
type Cache struct {
	Dir          string   `toml:"dir"`
	Size         Size     `toml:"size"`
	MinFree      Size     `toml:"min_free"`
	BlockSize    Size     `toml:"block_size"`
	ExtentSize   Size     `toml:"extent_size"`
	MaxExtent    Size     `toml:"max_extent"`
	MaxInflight  Size     `toml:"max_inflight"`
	FetchTimeout Duration `toml:"fetch_timeout"`
}

// Loader is what is fetched ahead of programs that start from images.
type Loader struct {
	Enabled    bool `toml:"enabled"`
	WholeFile  Size `toml:"whole_file"`
	PartOfFile Size `toml:"part_of_file"`
}

// Registry is how blobs are fetched.
type Registry struct {
	HostsDir     string   `toml:"hosts_dir"`
	PlainHTTP    []string `toml:"plain_http"`
	DockerConfig string   `toml:"docker_config"`
	CredFile     string   `toml:"cred_file"`
	UserAgent    string   `toml:"user_agent"` // empty: name and version of the program
	DialTimeout  Duration `toml:"dial_timeout"`
	IdleTimeout  Duration `toml:"idle_timeout"`
	RetryBudget  Duration `toml:"retry_budget"`
	MaxPerHost   int      `toml:"max_per_host"`
}

// Download is how layers in use are brought to the node in the background.
type Download struct {
	Enable     bool     `toml:"enable"`
	Delay      Duration `toml:"delay"`
	DelayExtra Duration `toml:"delay_extra"`
	Rate       Size     `toml:"rate"` // bytes per second; 0: unlimited
	Tries      int      `toml:"tries"`
	Parallel   int      `toml:"parallel"`
	ExtentSize Size     `toml:"extent_size"`
}

// TCMU is the exporter that serves devices as SCSI disks.
type TCMU struct {
	QueueDepth     int      `toml:"queue_depth"`
	DataArea       Size     `toml:"data_area"`
	CommandTimeout Duration `toml:"command_timeout"` // 0: never
	DiskTimeout    Duration `toml:"disk_timeout"`
}

// Ublk is the exporter that serves devices through io_uring.
type Ublk struct {
	Queues     int `toml:"queues"` // 0: one per processor, at most 4
	QueueDepth int `toml:"queue_depth"`
}

// Fuse is the exporter that serves devices as files.
type Fuse struct {
	Dir           string `toml:"dir"`
	MaxBackground int    `toml:"max_background"`
}

// Default returns the configuration that an empty file stands for.
func Default() *Config {
	return &Config{
		Root:          "/var/lib/containerd/io.containerd.snapshotter.v1.overlaybd",
		Address:       "/run/overlaybd-snapshotter/overlaybd.sock",
		RWMode:        "overlayfs",
		WritableLayer: "append",
		DefaultFS:     "ext4",
		Runtime:       "containerd",
		Tenant:        -1,
		Turbo: Turbo{
			FS:         []string{"erofs", "ext4"}, // the reference's
			Timeout:    Duration(10 * time.Second),
			Containerd: "/run/containerd/containerd.sock",
		},
		Log: Log{Level: "info", Format: "auto"},
		Blockd: Blockd{
			Start:    true,
			Address:  "/run/overlaybd-blockd/blockd.sock",
			StateDir: "/var/lib/overlaybd-blockd",
			Exporter: "auto",
			// Longer than a registry's restart, shorter than anyone waits
			// before rebooting the node.
			Patience:    Duration(5 * time.Minute),
			MemoryLimit: 1 * gib,
		},
		Cache: Cache{
			Dir:          "/var/lib/overlaybd-blockd/cache",
			Size:         20 * gib,
			MinFree:      2 * gib,
			BlockSize:    16 * kib,
			ExtentSize:   256 * kib, // the reference's refill size
			MaxExtent:    4 * mib,
			MaxInflight:  128 * mib,
			FetchTimeout: Duration(time.Minute),
		},
		Loader: Loader{Enabled: true, WholeFile: 5 * mib, PartOfFile: 1 * mib},
		Registry: Registry{
			HostsDir:     "/etc/containerd/certs.d",
			PlainHTTP:    []string{},
			DockerConfig: "/root/.docker/config.json",
			CredFile:     "/opt/overlaybd/cred.json",
			DialTimeout:  Duration(5 * time.Second),
			IdleTimeout:  Duration(30 * time.Second),
			RetryBudget:  Duration(10 * time.Second),
			MaxPerHost:   128,
		},
		P2P: P2P{Timeout: sourceTimeout},
		Download: Download{
			// All but the last two are the reference's.
			Delay:      Duration(5 * time.Minute),
			DelayExtra: Duration(30 * time.Second),
			Rate:       100 * mib,
			Tries:      5,
			Parallel:   1,
			ExtentSize: 4 * mib,
		},
		TCMU: TCMU{
			QueueDepth: 64,
			DataArea:   16 * mib,
			// The reference's: longer than any outage.
			DiskTimeout: Duration(2147483 * time.Second),
		},
		Ublk: Ublk{QueueDepth: 64},
		Fuse: Fuse{Dir: "/run/overlaybd-blockd/devices", MaxBackground: 64},
	}
}

// Load reads the file at path over the defaults. A name ending in .json is
// taken for the reference's configuration and goes through [Migrate], whose
// warnings it returns. The result is not validated, so that flags may still
// change it.
func Load(path string) (cfg *Config, warnings []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("load configuration: %w", err)
	}
	defer f.Close()
	if strings.EqualFold(filepath.Ext(path), ".json") {
		cfg, warnings, err = Migrate(f)
	} else {
		cfg, err = Decode(f)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("load configuration %s: %w", path, err)
	}
	return cfg, warnings, nil
}

// readAll reads a whole file of at most maxFile bytes.
func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	return data, nil
}
