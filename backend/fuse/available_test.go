// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAvailable asks machines that lack something what to do about it.
func TestAvailable(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ node, says string }{{"fuse", "modprobe fuse"}, {"loop-control", "modprobe loop"}} {
		if err := available(root); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("without %s: %v, want %q", c.node, err, c.says)
		}
		if err := os.WriteFile(filepath.Join(root, "dev", c.node), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := available(root); err != nil {
		t.Errorf("with all there is to have: %v", err)
	}
}
