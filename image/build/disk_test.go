// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/overlaybd-go/overlaybd/backend"
	filefetch "github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// stack opens the files of layers as one disk.
func stack(t testing.TB, files []string) *lsmt.Stack {
	t.Helper()
	layers := make([]*lsmt.Layer, 0, len(files))
	for _, name := range files {
		layers = append(layers, openLayer(t, name))
	}
	return merge(t, layers)
}

func merge(t testing.TB, layers []*lsmt.Layer) *lsmt.Stack {
	t.Helper()
	merged, err := lsmt.Merge(layers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = merged.Close() })
	return merged
}

func openLayer(t testing.TB, name string) *lsmt.Layer {
	t.Helper()
	b, err := filefetch.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lsmt.Open(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// flat writes the disk of layers to a sparse file, in which e2fsck or fsck.erofs
// finds nothing wrong.
func flat(t testing.TB, files []string) (disk string) {
	t.Helper()
	return flatten(t, stack(t, files))
}

func flatten(t testing.TB, s *lsmt.Stack) (disk string) {
	t.Helper()
	disk = filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(f.Truncate(s.Size()), copyMapped(t.Context(), f, s), f.Close())
	if err != nil {
		t.Fatal(err)
	}
	fsck := []string{"e2fsck", "-fn"}
	if fsType(t, disk) == build.EROFS {
		fsck = []string{"fsck.erofs"}
	}
	out, err := exec.CommandContext(t.Context(), need.Command(t, fsck[0]), append(fsck[1:], disk)...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", fsck[0], err, out)
	}
	return disk
}

// fsType tells what is on a disk.
func fsType(t testing.TB, disk string) string {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 1024); err != nil {
		t.Fatal(err)
	}
	if binary.LittleEndian.Uint32(magic) == 0xe0f5e1e2 {
		return build.EROFS
	}
	return build.Ext4
}

// copyMapped copies what s maps.
func copyMapped(ctx context.Context, f *os.File, s *lsmt.Stack) error {
	buf := make([]byte, 16384*backend.SectorSize)
	for m := range s.Mappings() {
		p := buf[:m.Sectors*backend.SectorSize]
		off := int64(m.LBA) * backend.SectorSize
		if m.Zeroed {
			continue
		}
		if _, err := s.ReadAt(ctx, p, off); err != nil {
			return err
		}
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}

// mounted lets the kernel read the disk.
func mounted(t testing.TB, disk string) (root string) {
	t.Helper()
	need.Root(t)
	need.Loop(t)
	root = t.TempDir()
	known, err := os.ReadFile("/proc/filesystems")
	if err == nil && !strings.Contains(string(known), "\t"+fsType(t, disk)+"\n") {
		err = errors.New("the kernel does not know it")
	}
	need.Capability(t, fsType(t, disk), err)
	m := mount.Mount{Type: fsType(t, disk), Source: disk, Options: []string{"ro", "loop"}}
	if err := m.Mount(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(root, 0); err != nil {
			t.Error(err)
		}
	})
	return root
}
