// SPDX-License-Identifier: Apache-2.0

package conf_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/conf"
)

const bootJSON = `{
  "root": "/data/snap", "address": "/run/o.sock", "verbose": "warning", "logReportCaller": false,
  "rwMode": "dev", "runtimeType": "docker", "autoRemoveDev": true, "asyncRemove": true,
  "writableLayerType": "sparse", "defaultFsType": "xfs;;-f", "turboFsType": ["erofs"],
  "mirrorRegistry": [
    {"host": "localhost:5000", "insecure": true}, {"host": "docker.io", "insecure": false},
    {"host": "localhost:5000", "insecure": true}
  ],
  "rootfsQuota": "20g", "tenant": 5,
  "exporterConfig": {"enable": true, "uriPrefix": "/m", "port": 9000, "interval": 3},
  "extra": {"a": 1}
}`

func TestMigrate(t *testing.T) {
	cfg, warnings, err := conf.Migrate(strings.NewReader(bootJSON))
	if err != nil {
		t.Fatal(err)
	}
	want := conf.Default()
	want.Root, want.Address = "/data/snap", "/run/o.sock"
	want.Log.Level = "warn"
	want.RWMode, want.Runtime, want.WritableLayer = "dev", "docker", "sparse"
	want.AutoRemoveDevice, want.AsyncRemove = true, true
	want.DefaultFS, want.Turbo.FS = "xfs;;-f", []string{"erofs", "ext4"}
	want.Registry.PlainHTTP = []string{"localhost:5000"}
	want.RootfsQuota, want.Tenant = 20<<30, 5
	want.Metrics.SnapshotterAddress = ":9000"
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"exporterConfig.interval", "extra", "logReportCaller", "exporterConfig.uriPrefix"}, warned(warnings)); diff != "" {
		t.Errorf("keys warned of (-want +got):\n%s", diff)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("migrated configuration is not valid: %v", err)
	}
}

func warned(warnings []string) (keys []string) {
	for _, w := range warnings {
		key, _, _ := strings.Cut(w, ":")
		keys = append(keys, key)
	}
	return keys
}

func TestMigrateEmpty(t *testing.T) {
	cfg, warnings, err := conf.Migrate(strings.NewReader("{}"))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("got warnings %q, %v", warnings, err)
	}
	if diff := cmp.Diff(conf.Default(), cfg); diff != "" {
		t.Errorf("(-default +got):\n%s", diff)
	}
}

// TestMigrateLoose pins what the reference forgave: keys in any case, and
// words it did not know.
func TestMigrateLoose(t *testing.T) {
	cfg, warnings, err := conf.Migrate(strings.NewReader(`{"RWMode": "overlay", "writablelayertype": "thin", "verbose": "loud", "ROOT": "/x"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := conf.Default()
	want.Root = "/x"
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"verbose", "rwMode", "writableLayerType"}, warned(warnings)); diff != "" {
		t.Errorf("keys warned of (-want +got):\n%s", diff)
	}
}

func TestMigrateErrors(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"no JSON", "root = 1", "invalid character"},
		{"empty", "", "unexpected end"},
		{"no object", "[]", "array"},
		{"wrong type", `{"tenant": "x"}`, "tenant"},
		{"two documents", "{}{}", "after top-level value"},
		{"quota", `{"rootfsQuota": "20 apples"}`, "rootfsQuota"},
		{"quota unit", `{"rootfsQuota": "20gg"}`, "rootfsQuota"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, _, err := conf.Migrate(strings.NewReader(tc.doc))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %+v, %v, want an error about %q", cfg, err, tc.want)
			}
		})
	}
}

const backendJSON = `{
  "logConfig": {"logLevel": 1, "logPath": "/var/log/overlaybd.log"},
  "registryCacheDir": "/opt/overlaybd/registry_cache", "registryCacheSizeGB": 9,
  "cacheConfig": {"cacheType": "file", "cacheDir": "/c", "cacheSizeGB": 12, "refillSize": 8388608},
  "credentialConfig": {"mode": "file", "path": "/etc/cred.json"}, "credentialFilePath": "/old.json",
  "download": {"enable": true, "delay": 600, "delayExtra": 0, "maxMBps": 50, "tryCnt": 3, "blockSize": 262144},
  "p2pConfig": {"enable": true, "address": "http://localhost:19145/dadip2p"},
  "exporterConfig": {"enable": true, "port": 9999},
  "userAgent": "ua/1"
}`

func TestMigrateBackend(t *testing.T) {
	cfg := conf.Default()
	warnings, err := cfg.MigrateBackend(strings.NewReader(backendJSON))
	if err != nil {
		t.Fatal(err)
	}
	want := conf.Default()
	want.Cache.Size = 12 << 30
	want.Cache.ExtentSize, want.Cache.MaxExtent = 8<<20, 8<<20
	want.Registry.CredFile, want.Registry.UserAgent = "/etc/cred.json", "ua/1"
	want.Download = conf.Download{
		Enable: true, Delay: conf.Duration(10 * time.Minute), Rate: 50 << 20, Tries: 3, Parallel: 1, ExtentSize: 256 << 10,
	}
	want.P2P.Kind, want.P2P.URL = "prefix", "http://localhost:19145/dadip2p"
	want.Metrics.BlockdAddress = ":9999"
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"cacheConfig.cacheDir", "logConfig", "registryCacheDir"}, warned(warnings)); diff != "" {
		t.Errorf("keys warned of (-want +got):\n%s", diff)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("migrated configuration is not valid: %v", err)
	}
}

// TestMigrateAgent: an agent without an address is where the reference's is,
// and one that is off is none.
func TestMigrateAgent(t *testing.T) {
	for doc, want := range map[string]conf.P2P{
		`{"p2pConfig": {"enable": true}}`:                           {Kind: "prefix", URL: "http://localhost:9731/accelerator"},
		`{"p2pConfig": {"enable": false, "address": "http://a/b"}}`: {},
	} {
		cfg := conf.Default()
		if warnings, err := cfg.MigrateBackend(strings.NewReader(doc)); err != nil || warnings != nil {
			t.Errorf("%s: %q, %v", doc, warnings, err)
		}
		if cfg.P2P.Kind != want.Kind || cfg.P2P.URL != want.URL {
			t.Errorf("%s: got %+v", doc, cfg.P2P)
		}
	}
}

func TestMigrateBackendOdd(t *testing.T) {
	for _, tc := range []struct{ name, doc, warning, err string }{
		{"old keys", `{"registryCacheSizeGB": 7, "credentialFilePath": "/a"}`, "", ""},
		{"refill size", `{"cacheConfig": {"refillSize": 5000}}`, "cacheConfig.refillSize", ""},
		{"cache type", `{"cacheConfig": {"cacheType": "ocf"}}`, "cacheConfig.cacheType", ""},
		{"credential mode", `{"credentialConfig": {"mode": "uds"}}`, "credentialConfig.mode", ""},
		{"huge cache", `{"registryCacheSizeGB": 9000000000}`, "", "registryCacheSizeGB"},
		{"negative rate", `{"download": {"enable": true, "maxMBps": -1}}`, "", "download.maxMBps"},
		{"negative delay", `{"download": {"delay": -1}}`, "download.delay", ""},
		{"odd numbers", `{"download": {"tryCnt": -1, "blockSize": 1}}`, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			warnings, err := conf.Default().MigrateBackend(strings.NewReader(tc.doc))
			if got := strings.Join(warned(warnings), " "); got != tc.warning {
				t.Errorf("warnings of %q, want %q", got, tc.warning)
			}
			if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got error %v, want one about %q", err, tc.err)
			}
		})
	}
}

func FuzzMigrate(f *testing.F) {
	f.Add([]byte(bootJSON))
	f.Add([]byte(backendJSON))
	f.Add([]byte(`{"Tenant": -1, "mirrorRegistry": [{}], "exporterConfig": {"enable": true, "port": -1}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		cfg, _, err := conf.Migrate(strings.NewReader(string(doc)))
		if err != nil {
			return
		}
		if _, err := cfg.MigrateBackend(strings.NewReader(string(doc))); err != nil {
			return
		}
		roundTrip(t, cfg)
	})
}
