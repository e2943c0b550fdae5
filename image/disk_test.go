// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestDiskLifecycle writes to an image, seals the writable layer and stacks
// the result as a lower: the way a container's changes become a layer.
func TestDiskLifecycle(t *testing.T) {
	dir, files := need.Golden(t, "blk/l0.lsmt")
	lower := spec.Lower{File: files["blk/l0.lsmt"].Path}
	up := spec.Upper{Data: filepath.Join(dir, "writable_data"), Index: filepath.Join(dir, "writable_index")}
	v := &spec.Volume{Lowers: []spec.Lower{lower}, Upper: up}
	want := bytes.Repeat([]byte("written "), 512/8)

	for range 2 { // created first, opened again then
		d, err := image.OpenDisk(t.Context(), v, local, image.DiskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(t.Context(), want, 8192); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.Sync(t.Context()), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	sealed := filepath.Join(dir, "overlaybd.sealed")
	for range 2 { // sealing is repeatable
		if err := image.Seal(t.Context(), up, sealed); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(up.Index); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("index file after sealing: %v, want it gone", err)
	}
	i, err := image.Open(t.Context(), &spec.Volume{Lowers: []spec.Lower{lower, {File: sealed}}}, local)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	got := make([]byte, 512)
	if _, err := i.ReadAt(t.Context(), got, 8192); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v; want what was written", got[:8], err)
	}
}

// TestSealResumes starts from what a crash between sealing in place and
// renaming leaves.
func TestSealResumes(t *testing.T) {
	dir := t.TempDir()
	up := spec.Upper{Data: filepath.Join(dir, "d"), Index: filepath.Join(dir, "i"), VSizeGB: 1}
	d, err := image.OpenDisk(t.Context(), &spec.Volume{Upper: up}, local, image.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := image.Seal(t.Context(), up, up.Data); err != nil { // seals, renames nothing
		t.Fatal(err)
	}
	dst := filepath.Join(dir, "sealed")
	if err := image.Seal(t.Context(), up, dst); err != nil {
		t.Fatal(err)
	}
	i, err := image.Open(t.Context(), &spec.Volume{Lowers: []spec.Lower{{File: dst}}}, local)
	if err != nil {
		t.Fatal(err)
	}
	if i.Size() != 1<<30 {
		t.Errorf("got size %d, want 1 GiB", i.Size())
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}
