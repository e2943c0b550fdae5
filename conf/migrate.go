// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// bootConfig is what has a counterpart among the keys of the reference
// snapshotter's config.json.
type bootConfig struct {
	Root             string `json:"root"`
	Address          string `json:"address"`
	Verbose          string `json:"verbose"`
	RWMode           string `json:"rwMode"`
	RuntimeType      string `json:"runtimeType"`
	AutoRemoveDev    bool   `json:"autoRemoveDev"`
	AsyncRemove      bool   `json:"asyncRemove"`
	WritableLayer    string `json:"writableLayerType"`
	MirrorRegistries []struct {
		Host     string `json:"host"`
		Insecure bool   `json:"insecure"`
	} `json:"mirrorRegistry"`
	DefaultFsType string         `json:"defaultFsType"`
	TurboFsType   []string       `json:"turboFsType"`
	RootfsQuota   string         `json:"rootfsQuota"`
	Tenant        int            `json:"tenant"`
	Exporter      exporterConfig `json:"exporterConfig"`
}

// exporterConfig is the metrics endpoint, alike in both files of the
// reference.
type exporterConfig struct {
	Enable    bool   `json:"enable"`
	URIPrefix string `json:"uriPrefix"`
	Port      int    `json:"port"`
}

// Migrate turns the reference snapshotter's config.json into a configuration.
// Whatever it cannot carry over is a warning that names the key.
func Migrate(r io.Reader) (cfg *Config, warnings []string, err error) {
	old := bootConfig{Verbose: "info", RWMode: "overlayfs", RuntimeType: "containerd", WritableLayer: "append", Tenant: -1}
	w, err := decodeJSON(r, &old)
	if err != nil {
		return nil, nil, err
	}
	cfg = Default()
	set(&cfg.Root, old.Root)
	set(&cfg.Address, old.Address)
	set(&cfg.DefaultFS, old.DefaultFsType)
	cfg.AutoRemoveDevice = old.AutoRemoveDev
	cfg.AsyncRemove = old.AsyncRemove
	cfg.Tenant = old.Tenant
	cfg.Log.Level = w.word("verbose", strings.ToLower(old.Verbose), logrusLevels, "info")
	cfg.RWMode = w.word("rwMode", old.RWMode, same("overlayfs", "dir", "dev"), "overlayfs")
	cfg.Runtime = w.word("runtimeType", old.RuntimeType, same("containerd", "docker"), "containerd")
	cfg.WritableLayer = w.word("writableLayerType", old.WritableLayer, same("append", "sparse"), "append")
	cfg.Metrics.SnapshotterAddress = w.endpoint(old.Exporter)
	for _, m := range old.MirrorRegistries {
		if m.Insecure && !slices.Contains(cfg.Registry.PlainHTTP, m.Host) {
			cfg.Registry.PlainHTTP = append(cfg.Registry.PlainHTTP, m.Host)
		}
	}
	if len(old.TurboFsType) > 0 {
		cfg.Turbo.FS = complete(old.TurboFsType)
	}
	if cfg.RootfsQuota, err = parseQuota(old.RootfsQuota); err != nil {
		return nil, nil, fmt.Errorf("rootfsQuota: %w", err)
	}
	return cfg, w.list, nil
}

// logrusLevels maps the reference's names of levels to ours.
var logrusLevels = map[string]string{
	"panic": "error", "fatal": "error", "error": "error", "warn": "warn",
	"warning": "warn", "info": "info", "debug": "debug", "trace": "debug",
}

// set overwrites dst unless the old file left value empty.
func set(dst *string, value string) {
	if value != "" {
		*dst = value
	}
}

// same returns a map of each word to itself.
func same(words ...string) map[string]string {
	m := map[string]string{}
	for _, word := range words {
		m[word] = word
	}
	return m
}

// complete appends the file systems that the reference always tries last.
func complete(turboFS []string) []string {
	for _, fs := range []string{"ext4", "erofs"} {
		if !slices.Contains(turboFS, fs) {
			turboFS = append(turboFS, fs)
		}
	}
	return turboFS
}

// parseQuota parses "20g", the reference's spelling of a size.
func parseQuota(s string) (Size, error) {
	var quota Size
	if s == "" {
		return 0, nil
	}
	text := strings.ToLower(s)
	number := strings.TrimRight(text, "kmgtib")
	unit, ok := map[string]Size{
		"": 1, "b": 1, "k": kib, "m": mib, "g": gib, "t": tib,
		"kb": kib, "mb": mib, "gb": gib, "tb": tib,
		"kib": kib, "mib": mib, "gib": gib, "tib": tib,
	}[text[len(number):]]
	if !ok {
		return 0, fmt.Errorf("invalid size %q", s)
	}
	return quota, quota.set(s, number, unit)
}

// warnings collects what a migration leaves behind.
type warnings struct{ list []string }

func (w *warnings) add(key, format string, args ...any) {
	w.list = append(w.list, key+": "+fmt.Sprintf(format, args...))
}

// word translates a word, and warns where it means nothing.
func (w *warnings) word(key, value string, meaning map[string]string, otherwise string) string {
	if word, ok := meaning[value]; ok {
		return word
	}
	w.add(key, "%q taken as %q, as it always was", value, otherwise)
	return otherwise
}

// endpoint returns the address of a metrics endpoint, on all interfaces as in
// the reference.
func (w *warnings) endpoint(e exporterConfig) string {
	if !e.Enable {
		return ""
	}
	if e.URIPrefix != "" && e.URIPrefix != "/metrics" {
		w.add("exporterConfig.uriPrefix", "%q is now /metrics", e.URIPrefix)
	}
	if e.Port == 0 {
		e.Port = 9863
	}
	return ":" + strconv.Itoa(e.Port)
}

// decodeJSON decodes a JSON object into v, whatever the case of its keys, and
// warns of every key that v has no field for.
func decodeJSON(r io.Reader, v any) (*warnings, error) {
	data, err := readAll(r)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(data, &tree); err != nil {
		return nil, err
	}
	w := &warnings{}
	w.unknown(reflect.TypeOf(v).Elem(), nil, tree)
	return w, nil
}

// unknown warns of the keys below path that t has no field for, in order.
func (w *warnings) unknown(t reflect.Type, path []string, tree map[string]any) {
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		full := append(slices.Clone(path), key)
		sub, isTree := tree[key].(map[string]any)
		switch {
		case !knows(t, full, "json", strings.EqualFold):
			w.add(strings.Join(full, "."), "has no counterpart and is left out")
		case isTree:
			w.unknown(t, full, sub)
		}
	}
}
