// SPDX-License-Identifier: Apache-2.0

package claim_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/claim"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// loop returns a loop device of its own, and its number.
func loop(t *testing.T) (node string, dev uint64) {
	t.Helper()
	need.Root(t)
	need.Loop(t)
	losetup := need.Command(t, "losetup")
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), losetup, "--find", "--show", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	node = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command(losetup, "--detach", node).Run(); err != nil { //nolint:noctx // the test's context is done
			t.Error(err)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		t.Fatal(err)
	}
	return node, st.Rdev
}

// TestTake claims a disk that is free, open, and claimed already.
func TestTake(t *testing.T) {
	node, dev := loop(t)
	first, err := claim.Take(node, dev)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim.Take(node, dev); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("Take of a claimed disk = %v, want ErrBusy", err)
	}
	first.Release()

	f, err := os.Open(node)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim.Take(node, dev); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("Take of an open disk = %v, want ErrBusy", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := claim.Take(node, dev)
	if err != nil {
		t.Errorf("Take of a disk that was closed = %v", err)
	}
	second.Release()
}

// TestGone claims what is not there: nobody can use it.
func TestGone(t *testing.T) {
	c, err := claim.Take(filepath.Join(t.TempDir(), "none"), 0)
	if err != nil {
		t.Error(err)
	}
	c.Release()
}
