// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAvailable asks machines that lack something what to do about it.
func TestAvailable(t *testing.T) {
	root := t.TempDir()
	for _, m := range modules {
		if err := available(root); err == nil || !strings.Contains(err.Error(), "modprobe "+m.name) {
			t.Errorf("without %s: %v, want the module to load", m.name, err)
		}
		if err := os.MkdirAll(filepath.Join(root, m.sign), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := available(root); err == nil || !strings.Contains(err.Error(), "mount -t configfs") {
		t.Errorf("without configfs: %v, want how to mount it", err)
	}
}
