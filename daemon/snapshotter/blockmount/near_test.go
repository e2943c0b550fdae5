// SPDX-License-Identifier: Apache-2.0

package blockmount_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// mountEROFS mounts a new EROFS until the test ends.
func mountEROFS(t *testing.T, near bool, options string) (target string) {
	t.Helper()
	need.EROFS(t)
	path, src := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "hello"), []byte("world"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, need.Command(t, "mkfs.erofs"), path, src)
	fs, err := blockmount.ParseFS("erofs;" + options)
	if err != nil {
		t.Fatal(err)
	}
	target = t.TempDir()
	if err := blockmount.Mount(blockmount.Device{Path: path, File: true, Near: near}, target, fs, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := blockmount.Unmount(target); err != nil {
			t.Error(err)
		}
	})
	if _, super := optionsOf(t, target); near == slices.Contains(super, "directio") {
		t.Fatalf("mounted with %v while near: %t", super, near)
	}
	return target
}

// optionsOf returns what the mount table says of a mount and its file system.
func optionsOf(t *testing.T, target string) (mount, super []string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil || len(infos) != 1 {
		t.Fatalf("got %v, %v", infos, err)
	}
	return strings.Split(infos[0].Options, ","), strings.Split(infos[0].VFSOptions, ",")
}

// TestSettle changes how a file system in use reads its device, and nothing
// else of it.
func TestSettle(t *testing.T) {
	target := mountEROFS(t, false, "noacl,cache_strategy=disabled")
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOATIME, ""); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(target, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mount, super := optionsOf(t, target)
	for range 2 {
		if err := blockmount.Settle(target); err != nil {
			t.Fatal(err)
		}
		now, superNow := optionsOf(t, target)
		want := slices.DeleteFunc(slices.Clone(super), func(o string) bool { return o == "directio" })
		if !slices.Equal(now, mount) || !slices.Equal(superNow, want) {
			t.Errorf("options %v, %v; were %v, %v", now, superNow, mount, super)
		}
	}
	text := make([]byte, 5)
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "world" {
		t.Errorf("read %q, %v", text, err)
	}
}

func TestMountNear(t *testing.T) { mountEROFS(t, true, "") }

// TestSettleElsewhere: nothing happens to what is not EROFS.
func TestSettleElsewhere(t *testing.T) {
	need.Loop(t)
	target := t.TempDir()
	if err := blockmount.Settle(target); err != nil {
		t.Errorf("of a plain directory: %v", err)
	}
	if err := blockmount.Mount(blockmount.Device{Path: makeImage(t), File: true}, target, blockmount.FS{}, false); err != nil {
		t.Fatal(err)
	}
	_, before := optionsOf(t, target)
	if err := blockmount.Settle(target); err != nil {
		t.Errorf("of an ext4: %v", err)
	}
	if _, after := optionsOf(t, target); !slices.Equal(before, after) {
		t.Errorf("the ext4 has options %v, had %v", after, before)
	}
	if err := blockmount.Unmount(target); err != nil {
		t.Error(err)
	}
}
