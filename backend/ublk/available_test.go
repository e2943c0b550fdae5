// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAvailable asks machines that lack something what to do about it.
func TestAvailable(t *testing.T) {
	root := t.TempDir()
	if err := available(root); err == nil || !strings.Contains(err.Error(), "modprobe ublk_drv") {
		t.Errorf("without the driver: %v, want the module to load", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "sys/module/ublk_drv"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := available(root); err == nil || !strings.Contains(err.Error(), "/dev/ublk-control") {
		t.Errorf("without its device: %v, want the device's name", err)
	}
	control := filepath.Join(root, "dev/ublk-control")
	if err := os.MkdirAll(control, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := available(root); !errors.Is(err, unix.EISDIR) || strings.Contains(err.Error(), "permission") {
		t.Errorf("with a directory for a device: %v", err)
	}
}
