// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestFileSystems makes, fills, checks and reads file systems on devices, the
// way the daemons' users do.
func TestFileSystems(t *testing.T) {
	need.FUSE(t)
	for _, c := range []struct {
		name      string
		size      int64
		loopFlags uint32
		fstype    string
		mkfs      []string
		check     []string
		readOnly  string // mount options
	}{
		{
			"ext4", 96 << 20, 0, "ext4",
			[]string{"mkfs.ext4", "-q"},
			[]string{"e2fsck", "-fn"},
			"noload",
		},
		{
			"ext4 direct", 96 << 20, unix.LO_FLAGS_DIRECT_IO, "ext4",
			[]string{"mkfs.ext4", "-q"},
			[]string{"e2fsck", "-fn"},
			"noload",
		},
		{
			"xfs", 320 << 20, 0, "xfs",
			[]string{"mkfs.xfs", "-q"},
			[]string{"xfs_repair", "-n"},
			"norecovery",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			need.Command(t, c.mkfs[0])
			e := newExporter(t)
			v := &unclosed{backendtest.NewMemVolume(c.size)}
			d := export(t, e, "rw", v)
			tree := fillDevice(t, d, c.fstype, c.loopFlags, c.mkfs, c.check)
			removeDevice(t, d)

			ro := export(t, e, "ro", backendtest.ReadOnly(v))
			loop, release := attachLoop(t, ro.Path(), c.loopFlags|unix.LO_FLAGS_READ_ONLY)
			dir, unmount := mount(t, loop, c.fstype, unix.MS_RDONLY, c.readOnly)
			release()
			compareTree(t, dir, tree)
			unmount()
			removeDevice(t, ro)
		})
	}
}

// An unclosed volume can be exported twice.
type unclosed struct{ backend.Writer }

func (unclosed) Close() error { return nil }

// fillDevice makes a file system on d and files in it, and checks it.
func fillDevice(t *testing.T, d *fuse.Device, fstype string, loopFlags uint32, mkfs, check []string) map[string][]byte {
	t.Helper()
	loop, release := attachLoop(t, d.Path(), loopFlags)
	run(t, mkfs[0], append(mkfs[1:], loop)...)
	dir, unmount := mount(t, loop, fstype, 0, "")
	tree := makeTree(t, dir)
	unmount()
	run(t, check[0], append(check[1:], loop)...)
	release()
	return tree
}

func removeDevice(t *testing.T, d *fuse.Device) {
	t.Helper()
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestEROFS mounts an image straight from the file, without a loop device.
func TestEROFS(t *testing.T) {
	need.FUSE(t)
	need.Command(t, "mkfs.erofs")
	src, image := t.TempDir(), filepath.Join(t.TempDir(), "erofs")
	tree := makeTree(t, src)
	run(t, "mkfs.erofs", "--quiet", image, src)

	d := export(t, newExporter(t), "erofs", backendtest.ReadOnly(openFileVolume(t, image)))
	for _, options := range []string{"", "directio"} {
		dir, unmount := mount(t, d.Path(), "erofs", unix.MS_RDONLY, options)
		compareTree(t, dir, tree)
		unmount()
	}
	removeDevice(t, d)
}

// makeTree writes files of many sizes below dir and returns their contents.
func makeTree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	content := rand.NewChaCha8([32]byte{7})
	tree := make(map[string][]byte)
	for name, size := range map[string]int64{
		"empty": 0, "a/byte": 1, "a/sector": 512, "a/b/page": 4097, "a/b/c/mib": 1<<20 + 3, "big": 24 << 20,
	} {
		data := make([]byte, size)
		if _, err := io.ReadFull(content, data); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		tree[name] = data
	}
	return tree
}

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
}
