// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/cmd/internal/exporter"
	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func newFUSE(t *testing.T) (m *machine, path string) {
	t.Helper()
	need.Root(t)
	need.FUSE(t)
	need.Loop(t)
	m = newMachine(t, "fuse")
	m.start()
	up := spec.Upper{Data: m.file("data"), Index: m.file("index"), VSizeGB: 1}
	return m, m.save("writable", &spec.Volume{Upper: up})
}

// TestFilesEndWithTheirDaemon: nothing is left of a file whose daemon was
// killed when the next one answers, and it can be made again.
func TestFilesEndWithTheirDaemon(t *testing.T) {
	m, path := newFUSE(t)
	a := m.attach("1", path)
	if !a.File || a.Exporter != "fuse" {
		t.Errorf("got %+v, want a file", a)
	}
	m.kill()
	m.start()
	m.await("1", "")
	if left, _ := filepath.Glob(filepath.Join(m.cfg.Fuse.Dir, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if b := m.attach("1", path); b.Path != a.Path {
		t.Errorf("got %+v, want the file %s again", b, a.Path)
	}
	m.stop() // and with it the file
	if left, _ := filepath.Glob(filepath.Join(m.cfg.Blockd.StateDir, "devices", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestUsedFilesKeepTheirDaemon: a daemon that is to stop goes on while a file
// is open.
func TestUsedFilesKeepTheirDaemon(t *testing.T) {
	m, path := newFUSE(t)
	a := m.attach("1", path)
	f, err := os.Open(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	m.ask()
	if err := m.api.Detach(t.Context(), "1"); err == nil {
		t.Error("detached while open")
	}
	if _, err := f.ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	m.await("1", blockapi.Serving)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	m.awaitEnd()
}

// TestOneDaemonOnly: a second one for the same devices says who has them.
func TestOneDaemonOnly(t *testing.T) {
	m, _ := newFUSE(t)
	var stderr bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it need not wait for the first to end
	err := run(ctx, []string{"--config", m.file("config.toml")}, &stderr, &stderr)
	if err == nil || !strings.Contains(err.Error(), "served by process") {
		t.Errorf("got %v, want the process that serves", err)
	}
}

// TestExporterMissing: an exporter that is named but cannot work is an error
// that says what to do, not another exporter.
func TestExporterMissing(t *testing.T) {
	lacks := errors.New("kernel module is not loaded: modprobe it")
	cfg := conf.Default()
	cfg.Blockd.Exporter = "tcmu"
	x := exporters{cfg: cfg, kinds: []exporter.Kind{
		{Name: "tcmu", Available: func() error { return lacks }},
		{Name: "fuse", Available: func() error { return nil }},
	}}
	if err := x.start(t.Context()); !errors.Is(err, lacks) {
		t.Errorf("got %v, want what TCMU lacks", err)
	}
}
