// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/cmd/internal/exporter"
)

// laptop makes a machine of files whose kernel has the file systems.
func laptop(t *testing.T, fileSystems string) machine {
	t.Helper()
	m := machine{t.TempDir() + "/"}
	for name, content := range map[string]string{"proc/sys/kernel/osrelease": "6.1.0\n", "proc/filesystems": fileSystems} {
		path := filepath.Join(m.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func kind(name string, err error) exporter.Kind {
	return exporter.Kind{Name: name, Available: func() error { return err }}
}

func TestDoctor(t *testing.T) {
	m := laptop(t, "nodev\toverlay\n\text4\n")
	d := diagnose(m, []exporter.Kind{kind("tcmu", errors.New("modprobe tcm_loop")), kind("fuse", nil)})
	if d.Exporter != "fuse" || d.Kernel != "6.1.0" || d.verdict() != nil || !strings.Contains(d.Reason, "not tcmu: modprobe tcm_loop") {
		t.Errorf("got %+v, want the FUSE exporter and why", d)
	}
	var out bytes.Buffer
	if err := d.print(&out, false); err != nil || !strings.Contains(out.String(), "modprobe erofs") {
		t.Errorf("printed %v\n%s", err, &out)
	}
	d = diagnose(m, []exporter.Kind{kind("fuse", errors.New("modprobe loop"))})
	if d.Exporter != "" || !strings.Contains(d.Reason, "modprobe loop") || d.verdict() == nil {
		t.Errorf("got %+v, want no exporter and what to do", d)
	}
	d = diagnose(laptop(t, "\text4\n"), []exporter.Kind{kind("fuse", nil)})
	if err := d.verdict(); err == nil || !strings.Contains(err.Error(), "modprobe overlay") {
		t.Errorf("without overlay: %v, want what to do", err)
	}
}
