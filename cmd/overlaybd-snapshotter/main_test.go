// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/conf"
)

func runCommand(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = run(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), err
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigMigrate(t *testing.T) {
	old := write(t, "config.json", `{"root":"/r","address":"/a.sock","rwMode":"dir","verbose":"debug","nonsense":1}`)
	stdout, stderr, err := runCommand(t, "config", "migrate", old)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := conf.Decode(strings.NewReader(stdout))
	if err != nil {
		t.Fatalf("what migrate prints is no configuration: %v", err)
	}
	if cfg.Root != "/r" || cfg.Address != "/a.sock" || cfg.RWMode != "dir" || cfg.Log.Level != "debug" {
		t.Errorf("got %+v", cfg)
	}
	if !strings.Contains(stderr, "nonsense") {
		t.Errorf("the unknown key is not named: %q", stderr)
	}
}

func TestConfigDefaultIsTheSample(t *testing.T) {
	stdout, _, err := runCommand(t, "config", "default")
	if err != nil {
		t.Fatal(err)
	}
	sample, err := os.ReadFile("../../conf/config.toml")
	if err != nil || stdout != string(sample) {
		t.Errorf("config default differs from the sample (%v)", err)
	}
}

func TestBadConfigurationIsNamed(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "rooot = \"/r\"\n", "rooot"},
		{"invalid values", "rw_mode = \"x\"\n[blockd]\nexporter = \"y\"\n", "rw_mode"},
		{"second problem", "rw_mode = \"x\"\n[blockd]\nexporter = \"y\"\n", "exporter"},
	} {
		path := write(t, "config.toml", tc.text)
		for _, args := range [][]string{{"--config", path}, {path}} {
			_, _, err := runCommand(t, args...)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: got %v, want an error naming %s and the file", tc.name, err, tc.want)
			}
		}
	}
}

// TestNoBlockDaemon: with starting it off, its absence is told.
func TestNoBlockDaemon(t *testing.T) {
	dir := t.TempDir()
	path := write(t, "config.toml", `root = "`+dir+`/root"
address = "`+dir+`/s.sock"
[blockd]
start = false
address = "`+dir+`/b.sock"
`)
	_, _, err := runCommand(t, "--config", path)
	if err == nil || !strings.Contains(err.Error(), dir+"/b.sock") {
		t.Errorf("got %v, want an error naming the socket", err)
	}
}
