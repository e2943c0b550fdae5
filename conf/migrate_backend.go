// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"io"
	"math"
	"time"
)

// backendConfig is what has a counterpart among the keys of the reference
// daemon's overlaybd.json.
type backendConfig struct {
	CacheSizeGB int64 `json:"registryCacheSizeGB"` // where cacheConfig names no type
	Cache       struct {
		Type       string `json:"cacheType"`
		SizeGB     int64  `json:"cacheSizeGB"`
		RefillSize int64  `json:"refillSize"` // bytes
	} `json:"cacheConfig"`
	CredentialFile string `json:"credentialFilePath"` // where credentialConfig names no mode
	Credential     struct {
		Mode string `json:"mode"`
		Path string `json:"path"`
	} `json:"credentialConfig"`
	P2P struct {
		Enable  bool   `json:"enable"`
		Address string `json:"address"`
	} `json:"p2pConfig"`
	Download  downloadConfig `json:"download"`
	Exporter  exporterConfig `json:"exporterConfig"`
	UserAgent string         `json:"userAgent"`
}

// downloadConfig is the reference's background download. A key left out keeps
// its default.
type downloadConfig struct {
	Enable     bool   `json:"enable"`
	Delay      *int64 `json:"delay"`      // seconds
	DelayExtra *int64 `json:"delayExtra"` // seconds
	MaxMBps    *int64 `json:"maxMBps"`
	TryCnt     *int   `json:"tryCnt"`
	BlockSize  *int64 `json:"blockSize"` // bytes
}

// MigrateBackend carries the settings of the reference daemon's overlaybd.json
// over into the configuration. Whatever it cannot carry over is a warning that
// names the key. The cache directory is left behind on purpose: its files are
// of another form.
func (c *Config) MigrateBackend(r io.Reader) (warnings []string, err error) {
	var old backendConfig
	w, err := decodeJSON(r, &old)
	if err != nil {
		return nil, err
	}
	if err := c.migrateCache(&old, w); err != nil {
		return nil, err
	}
	switch old.Credential.Mode {
	case "":
		set(&c.Registry.CredFile, old.CredentialFile)
	case "file":
		set(&c.Registry.CredFile, old.Credential.Path)
	default:
		w.add("credentialConfig.mode", "%q has no counterpart and is left out", old.Credential.Mode)
	}
	if err := c.Download.migrate(&old.Download, w); err != nil {
		return nil, err
	}
	if old.P2P.Enable {
		c.P2P.Kind, c.P2P.URL = "prefix", "http://localhost:9731/accelerator" // where the reference's is
		set(&c.P2P.URL, old.P2P.Address)
	}
	set(&c.Registry.UserAgent, old.UserAgent)
	c.Metrics.BlockdAddress = w.endpoint(old.Exporter)
	return w.list, nil
}

func (c *Config) migrateCache(old *backendConfig, w *warnings) error {
	key, sizeGB := "registryCacheSizeGB", old.CacheSizeGB
	if old.Cache.Type != "" {
		key, sizeGB = "cacheConfig.cacheSizeGB", old.Cache.SizeGB
	}
	if sizeGB != 0 {
		if err := c.Cache.Size.times(key, sizeGB, gib); err != nil {
			return err
		}
	}
	if old.Cache.Type != "" && old.Cache.Type != "file" {
		w.add("cacheConfig.cacheType", "%q has no counterpart and is left out", old.Cache.Type)
	}
	extent := Size(old.Cache.RefillSize)
	switch {
	case extent == 0:
	case !powerOfTwo(extent) || extent < 4*kib:
		w.add("cacheConfig.refillSize", "%d is not a power of two from 4096 and is left out", int64(extent))
	default:
		c.Cache.ExtentSize = extent
		c.Cache.BlockSize = min(c.Cache.BlockSize, extent)
		c.Cache.MaxExtent = max(c.Cache.MaxExtent, extent)
		c.Cache.MaxInflight = max(c.Cache.MaxInflight, c.Cache.MaxExtent)
	}
	return nil
}

// migrate carries a background download over.
func (d *Download) migrate(old *downloadConfig, w *warnings) error {
	d.Enable = old.Enable
	if old.MaxMBps != nil {
		if err := d.Rate.times("download.maxMBps", *old.MaxMBps, mib); err != nil {
			return err
		}
	}
	w.seconds("download.delay", old.Delay, &d.Delay)
	w.seconds("download.delayExtra", old.DelayExtra, &d.DelayExtra)
	if old.TryCnt != nil {
		d.Tries = min(max(*old.TryCnt, 1), maxTries)
	}
	if old.BlockSize != nil {
		d.ExtentSize = min(max(Size(*old.BlockSize), minRequest), maxRequest)
	}
	return nil
}

// seconds stores a number of seconds, if there is one, and warns where that is
// no duration.
func (w *warnings) seconds(key string, n *int64, d *Duration) {
	switch {
	case n == nil:
	case *n < 0 || *n > int64(math.MaxInt64/time.Second):
		w.add(key, "%d is no number of seconds and is left out", *n)
	default:
		*d = Duration(time.Duration(*n) * time.Second)
	}
}

// times stores n × unit, and names key where that is no size.
func (s *Size) times(key string, n int64, unit Size) error {
	if err := s.set(fmt.Sprint(n), fmt.Sprint(n), unit); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}
