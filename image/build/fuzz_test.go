// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// FuzzTarget: whatever a tar is, its files are the same in it and in the layer.
func FuzzTarget(f *testing.F) {
	f.Add(plain(f, members(f, file("a", "x"), dir("b"), file("b/c", noise(5000)), link(tar.TypeLink, "d", "a"))))
	f.Add(soiled(plain(f, members(f, file("a", noise(600)))), 512+600, 512+700))
	f.Add(plain(f, sparse(f, 10_000)))
	f.Fuzz(func(t *testing.T, p []byte) {
		stored, mapped := backendtest.NewMemVolume(8<<20), targeted{backendtest.NewMemVolume(8 << 20), p}
		want := applyTo(t, stored, build.Apply, p)
		got := applyTo(t, mapped, build.ApplyTarget, p)
		switch {
		case errors.Is(got, syscall.ENOSPC): // zeros are not stored, but mapped
		case (got == nil) != (want == nil):
			t.Errorf("error %v, and %v when it is stored", got, want)
		case got == nil:
			if diff := cmp.Diff(contents(t, stored), contents(t, mapped)); diff != "" {
				t.Error(diff)
			}
		}
	})
}

// A targeted volume copies what is mapped from its target, so that it can be
// read.
type targeted struct {
	*backendtest.MemVolume
	target []byte
}

var _ vfs.ContentMapper = targeted{}

func (v targeted) MapContent(ctx context.Context, off, n, at int64) error {
	if at%512 != 0 {
		return fmt.Errorf("mapped from %d", at)
	}
	p := make([]byte, n)
	copy(p, v.target[at:])
	_, err := v.WriteAt(ctx, p, off)
	return err
}

// applyTo applies a tar to a new file system on v.
func applyTo(t *testing.T, v backend.Writer, apply func(context.Context, vfs.FileSystem, io.Reader) error, tar []byte) error {
	t.Helper()
	if err := ext4.Format(t.Context(), v, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	failed := apply(t.Context(), fsys, bytes.NewReader(tar))
	if err := fsys.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return failed
}
