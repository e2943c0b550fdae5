// SPDX-License-Identifier: Apache-2.0

package conf_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/conf"
)

// TestSampleIsDefault holds the sample file against the defaults, both ways:
// what it says is what holds, and it leaves no key out.
func TestSampleIsDefault(t *testing.T) {
	sample, err := os.ReadFile("config.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := conf.Decode(bytes.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(conf.Default(), cfg); diff != "" {
		t.Errorf("sample differs from the defaults (-default +sample):\n%s", diff)
	}
	if diff := cmp.Diff(string(sample), writeTOML(t, conf.Default())); diff != "" {
		t.Errorf("defaults as written differ from the sample:\n%s", diff)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("sample is not valid: %v", err)
	}
}

func writeTOML(t *testing.T, cfg *conf.Config) string {
	t.Helper()
	var b strings.Builder
	if err := cfg.WriteTOML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestWriteTOML changes every key, so that one which the sample lacks is lost
// on the way and seen.
func TestWriteTOML(t *testing.T) {
	cfg := other()
	got, err := conf.Decode(strings.NewReader(writeTOML(t, cfg)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(cfg, got); diff != "" {
		t.Errorf("written and read again (-want +got):\n%s", diff)
	}
}

func TestDecode(t *testing.T) {
	cfg, err := conf.Decode(strings.NewReader(`
tenant = 7
rootfs_quota = 4096
[cache]
size = "3 TiB"
fetch_timeout = "1m30s"
[registry]
plain_http = ["reg.example:5000"]
[[source]]
match = "a"
[[source]]
match = "b"
timeout = "7s"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := conf.Default()
	want.Tenant = 7
	want.RootfsQuota = 4096
	want.Cache.Size = 3 << 40
	want.Cache.FetchTimeout = conf.Duration(90 * time.Second)
	want.Registry.PlainHTTP = []string{"reg.example:5000"}
	want.Sources = []conf.Source{{Match: "a", Timeout: conf.Duration(5 * time.Second)}, {Match: "b", Timeout: conf.Duration(7 * time.Second)}}
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, tc := range []struct {
		name, doc string
		want      []string // parts of the message
	}{
		{"unknown key", "tenant = 1\n[cache]\nsize = 1\nbloc_size = 2\n", []string{"line 4: unknown key cache.bloc_size"}},
		{"unknown table", "\n[caches]\nsize = 1\n", []string{"line 2: unknown key caches", "line 3: unknown key caches.size"}},
		{"dotted", "cache.siz = 1", []string{"line 1: unknown key cache.siz"}},
		{"inline", "a = 1\ncache = {size = 1, x = 2}", []string{"line 1: unknown key a", "line 2: unknown key cache.x"}},
		{"unknown in a source", "[[source]]\nmatch = \"a\"\n[[source]]\nbuckt = \"b\"", []string{"unknown key source.buckt"}},
		{"one source", "[source]\nmatch = \"a\"", []string{"source"}},
		{"other case", "root = \"/a\"\nRoot = \"/b\"", []string{"unknown key Root"}},
		{"all unknown", "[x]\n" + numbered(3000), []string{"line 2: unknown key x.k0"}},
		{"odd name", "\"\" = 1\n\"a,b\" = 2", []string{`unknown key ""`, `unknown key "a,b"`}},
		{"below a value", "[cache.dir]\nx = 1", []string{"cache.dir"}},
		{"wrong type", "[cache]\n\ndir = 3\n", []string{"line 3", "cache.dir"}},
		{"decimal unit", "[cache]\nsize = \"20GB\"", []string{"line 2", "cache.size", "20GB"}},
		{"fraction", "[cache]\nsize = 1.5", []string{"cache.size"}},
		{"negative size", "[cache]\nsize = -1", []string{"cache.size"}},
		{"huge size", "[cache]\nsize = \"8388608TiB\"", []string{"cache.size", "63 bits"}},
		{"bare duration", "[blockd]\npatience = 90", []string{"blockd.patience", "unit"}},
		{"no TOML", "root = ", []string{"line 1"}},
		{"twice", "tenant = 1\ntenant = 2", []string{"line 2", "tenant"}},
		{"too long", strings.Repeat("#\n", 1<<19+1), []string{"more than 1048576 bytes"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, err := conf.Decode(strings.NewReader(tc.doc))
			if err == nil {
				t.Fatalf("decoded: %+v", cfg)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

// numbered returns n lines that each set a key.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d = 1\n", i)
	}
	return b.String()
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if _, _, err := conf.Load(filepath.Join(dir, "none.toml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: got %v, want fs.ErrNotExist", err)
	}
	path := write("bad.toml", "x = 1")
	if _, _, err := conf.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("bad file: error %v does not name it", err)
	}
	cfg, warnings, err := conf.Load(write("c.toml", "tenant = 3"))
	if err != nil || cfg.Tenant != 3 || len(warnings) != 0 {
		t.Errorf("TOML: got tenant %d, warnings %q, %v", cfg.Tenant, warnings, err)
	}
	cfg, warnings, err = conf.Load(write("c.json", `{"tenant": 4, "logReportCaller": true}`))
	if err != nil || cfg.Tenant != 4 || len(warnings) != 1 {
		t.Errorf("JSON: got tenant %d, warnings %q, %v", cfg.Tenant, warnings, err)
	}
}

func TestSizeText(t *testing.T) {
	for want, size := range map[string]conf.Size{
		"0": 0, "1": 1, "1023": 1023, "1KiB": 1 << 10, "1025": 1025,
		"3MiB": 3 << 20, "1536KiB": 3 << 19, "20GiB": 20 << 30, "1TiB": 1 << 40,
	} {
		var back conf.Size
		if got := size.String(); got != want || back.UnmarshalText([]byte(got)) != nil || back != size {
			t.Errorf("%d bytes: wrote %q, want %q; read back as %d", size, got, want, back)
		}
	}
}

func TestDurationText(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": 0, "30s": 30 * time.Second, "1m": time.Minute, "10m": 10 * time.Minute,
		"1m30s": 90 * time.Second, "2h": 2 * time.Hour, "1h5m": 65 * time.Minute, "250ms": 250 * time.Millisecond,
	} {
		var back conf.Duration
		if got := conf.Duration(d).String(); got != want || back.UnmarshalText([]byte(got)) != nil || back != conf.Duration(d) {
			t.Errorf("%v: wrote %q, want %q; read back as %v", d, got, want, back)
		}
	}
}

func FuzzDecode(f *testing.F) {
	sample, err := os.ReadFile("config.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Add([]byte("cache = {size = \"1KiB\"}\n[registry]\nplain_http = [\"a\", \"b:1\"]"))
	f.Add([]byte("[[source]]\nmatch = \"a/*\"\ntimeout = \"0s\"\n[[source]]"))
	f.Add([]byte("source = []"))
	f.Add([]byte("[[cache]]\nsize = 1"))
	f.Add([]byte("\"a\\\"b\".c = 1979-05-27"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		cfg, err := conf.Decode(bytes.NewReader(doc))
		if err != nil {
			if cfg != nil {
				t.Error("got a configuration along with an error")
			}
			return
		}
		roundTrip(t, cfg)
	})
}

// roundTrip checks that what can be read is written so that it reads the same.
func roundTrip(t *testing.T, cfg *conf.Config) {
	t.Helper()
	_ = cfg.Validate()
	text := writeTOML(t, cfg)
	again, err := conf.Decode(strings.NewReader(text))
	if err != nil {
		t.Fatalf("read again: %v\n%s", err, text)
	}
	if diff := cmp.Diff(cfg, again); diff != "" {
		t.Errorf("written and read again (-want +got):\n%s", diff)
	}
}
