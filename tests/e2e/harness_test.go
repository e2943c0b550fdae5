// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// TestOverlayfs holds the environment itself against containerd's own
// snapshotter: what the other tests compare with must be right first.
func TestOverlayfs(t *testing.T) {
	env := e2e.Start(t, e2e.Options{})
	ref := env.Registry.Push(t, e2e.Synthetic(t), "synthetic", "oci")
	env.Pull(ref)
	if got := env.Run("overlayfs", ref); got != "hello\n" {
		t.Errorf("the container said %q", got)
	}
	tree, err := e2e.ReadTree(env.Mount("overlayfs", ref))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"tree/drop/b": false, "tree/drop/a": true, "tree/clear/y": false, "tree/clear/z": true,
		"odd/null": true, "tree/linked-1": false, "tree/linked-2": true, "tree/.wh.drop": false,
	} {
		if _, got := tree[name]; got != want {
			t.Errorf("%s exists: %v, want %v", name, got, want)
		}
	}
	if got := tree["odd/capable"].Xattrs["security.capability"]; len(got) != 20 {
		t.Errorf("file capability %q", got)
	}
	if got := tree["odd/linked-1"].Links; strings.Count(got, ",") != 2 {
		t.Errorf("hard links %q", got)
	}
	if served, _ := env.Registry.Served(); served == 0 {
		t.Error("the registry counted nothing")
	}
}

func TestTreeDiff(t *testing.T) {
	base := func(dir string) error {
		return errors.Join(
			os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644),
			os.Chtimes(filepath.Join(dir, "file"), time.Time{}, time.Unix(1, 1)),
			os.Symlink("file", filepath.Join(dir, "symlink")),
			unix.Lutimes(filepath.Join(dir, "symlink"), make([]unix.Timeval, 2)),
			os.Link(filepath.Join(dir, "file"), filepath.Join(dir, "link")),
			os.Chtimes(dir, time.Time{}, time.Unix(2, 2)),
		)
	}
	for name, change := range map[string]func(dir string) error{
		"content": func(dir string) error {
			return errors.Join(os.WriteFile(dir+"/file", []byte("TEXT"), 0o644), os.Chtimes(dir+"/file", time.Time{}, time.Unix(1, 1)))
		},
		"time":     func(dir string) error { return os.Chtimes(dir+"/file", time.Time{}, time.Unix(1, 2)) },
		"mode":     func(dir string) error { return os.Chmod(dir+"/file", 0o644|fs.ModeSetuid) },
		"new file": func(dir string) error { return os.Mkdir(dir+"/new", 0o755) },
		"link": func(dir string) error {
			return errors.Join(os.Remove(dir+"/link"), os.WriteFile(dir+"/link", []byte("text"), 0o644), os.Chtimes(dir+"/link", time.Time{}, time.Unix(1, 1)))
		},
		"symlink": func(dir string) error {
			return errors.Join(os.Remove(dir+"/symlink"), os.Symlink("./file", dir+"/symlink"), unix.Lutimes(dir+"/symlink", make([]unix.Timeval, 2)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := t.TempDir(), t.TempDir()
			if err := errors.Join(base(a), base(b)); err != nil {
				t.Fatal(err)
			}
			if diff := diffTrees(t, a, b); len(diff) != 0 {
				t.Fatalf("equal trees differ: %v", diff)
			}
			if err := change(b); err != nil {
				t.Fatal(err)
			}
			if diff := diffTrees(t, a, b); len(diff) == 0 {
				t.Error("no difference was found")
			}
		})
	}
}

func diffTrees(t *testing.T, a, b string) []string {
	t.Helper()
	x, err := e2e.ReadTree(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := e2e.ReadTree(b)
	if err != nil {
		t.Fatal(err)
	}
	return x.Diff(y)
}

// TestDebian runs the large image under containerd's own snapshotter.
func TestDebian(t *testing.T) {
	env := e2e.Start(t, e2e.Options{})
	ref := env.Registry.Push(t, e2e.Debian(t), "debian", "oci")
	env.Pull(ref)
	if got := env.Run("overlayfs", ref); !strings.HasPrefix(got, "hello from Linux") {
		t.Errorf("the container said %q", got)
	}
}
