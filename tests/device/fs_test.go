// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
)

// fileSystems are those that people put on disks, with the programs that make
// and check them.
var fileSystems = []struct {
	fstype   string
	size     int64 // of the disk, in bytes; xfs wants 300 MiB
	mkfs     []string
	check    []string
	readOnly string // mount option that leaves the journal alone
}{
	{"ext4", 64 << 20, []string{"mkfs.ext4", "-q"}, []string{"e2fsck", "-fn"}, "noload"},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q"}, []string{"xfs_repair", "-n"}, "norecovery"},
}

// TestFileSystem makes a file system on a device, fills and checks it, and
// reads it back through another device that cannot be written to.
func TestFileSystem(t *testing.T) {
	for _, c := range fileSystems {
		t.Run(c.fstype, func(t *testing.T) {
			each(t, func(t *testing.T, k kind) {
				e, v := k.exporter(t), newVolume(c.size)
				d := export(t, e, "rw", v)
				run(t, c.mkfs[0], append(c.mkfs[1:], d.Path())...)
				dir, unmount := mount(t, d.Path(), c.fstype, 0, "")
				tree := makeTree(t, dir)
				if err := d.Remove(t.Context()); !errors.Is(err, backend.ErrBusy) {
					t.Errorf("Remove of a mounted disk = %v, want ErrBusy", err)
				}
				unmount()
				run(t, c.check[0], append(c.check[1:], d.Path())...)
				remove(t, d)

				ro := export(t, e, "ro", backendtest.ReadOnly(v))
				run(t, c.check[0], append(c.check[1:], ro.Path())...)
				dir, unmount = mount(t, ro.Path(), c.fstype, unix.MS_RDONLY, c.readOnly)
				compareTree(t, dir, tree)
				unmount()
			})
		})
	}
}

// makeTree makes files of many sizes below dir, renames and removes some, and
// returns what there is.
func makeTree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	content := rand.NewChaCha8([32]byte{7})
	tree := make(map[string][]byte)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, size := range map[string]int{
		"empty": 0, "a/byte": 1, "a/sector": 512, "a/b/page": 4097, "a/b/c/mib": 1<<20 + 3, "big": 12 << 20, "gone": 3 << 20,
	} {
		data := make([]byte, size)
		_, _ = content.Read(data)
		if err := errors.Join(root.MkdirAll(filepath.Dir(name), 0o755), root.WriteFile(name, data, 0o644)); err != nil {
			t.Fatal(err)
		}
		tree[name] = data
	}
	tree["a/moved"] = tree["a/b/page"]
	delete(tree, "a/b/page")
	delete(tree, "gone")
	if err := errors.Join(root.Rename("a/b/page", "a/moved"), root.Remove("gone")); err != nil {
		t.Fatal(err)
	}
	return tree
}

// compareTree asks that the files below dir are those of tree.
func compareTree(t *testing.T, dir string, tree map[string][]byte) {
	t.Helper()
	for name, want := range tree {
		got, err := fs.ReadFile(os.DirFS(dir), name)
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s reads back wrong", name)
		}
	}
	for _, gone := range []string{"gone", "a/b/page"} {
		if _, err := os.Lstat(filepath.Join(dir, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want none", gone, err)
		}
	}
}
