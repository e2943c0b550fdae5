// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// fileVolume is a Writer over a sparse file, which fsck.erofs and the kernel
// can look at.
type fileVolume struct {
	*os.File
	size int64
}

var _ backend.Writer = fileVolume{}

func (v fileVolume) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return v.File.ReadAt(p, off)
}

func (v fileVolume) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return v.File.WriteAt(p, off)
}

func (v fileVolume) Size() int64                { return v.size }
func (v fileVolume) Sync(context.Context) error { return nil }

func (v fileVolume) Discard(ctx context.Context, off, n int64) error {
	_, err := v.WriteAt(ctx, make([]byte, n), off)
	return err
}

// newFile returns a volume of size bytes in a sparse file. The kernel mounts
// none that is in memory.
func newFile(t testing.TB, size int64) fileVolume {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return fileVolume{f, size}
}

// format returns a new file system on v.
func format(t testing.TB, v backend.Writer) *erofs.FS {
	t.Helper()
	if err := erofs.Format(t.Context(), v, erofs.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	return open(t, v)
}

func open(t testing.TB, v backend.Writer) *erofs.FS {
	t.Helper()
	f, err := erofs.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func flush(t testing.TB, f *erofs.FS) {
	t.Helper()
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// fsck runs fsck.erofs over v, which must be clean.
func fsck(t testing.TB, v fileVolume) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Command(t, "fsck.erofs"), v.Name())
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("<E>")) {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
}

// must returns v. An error panics: it is not expected, and what follows could
// not go on.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// attr returns attributes that show whether each is kept.
func attr(mode uint32) vfs.Attr {
	return vfs.Attr{Mode: mode, UID: 70_001, GID: 80_002, Mtime: time.Unix(1_700_000_000, 222)}
}

// pattern returns n bytes that depend on the seed.
func pattern(seed, n int) []byte {
	p := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x>>24) | 1
	}
	return p
}
