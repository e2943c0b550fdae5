// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// fileVolume is a Writer over a sparse file, which e2fsck and the kernel can
// look at.
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

func (v fileVolume) Size() int64                                 { return v.size }
func (v fileVolume) Sync(context.Context) error                  { return nil }
func (v fileVolume) Discard(context.Context, int64, int64) error { return errors.ErrUnsupported }

// newFile returns a volume of size bytes in a sparse file, in memory where
// possible: the kernel syncs what it mounts.
func newFile(t testing.TB, size int64) fileVolume {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ext4-test-") //nolint:usetesting // t.TempDir is on disk
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Create(filepath.Join(dir, "disk"))
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
func format(t testing.TB, v backend.Writer) *ext4.FS {
	t.Helper()
	if err := ext4.Format(t.Context(), v, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	return open(t, v)
}

func open(t testing.TB, v backend.Writer) *ext4.FS {
	t.Helper()
	f, err := ext4.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func flush(t testing.TB, f *ext4.FS) {
	t.Helper()
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// fsck runs e2fsck over v, which must be clean.
func fsck(t testing.TB, v fileVolume) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Command(t, "e2fsck"), "-fn", v.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
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

func attr(mode uint32) vfs.Attr {
	at := time.Unix(1_700_000_000, 123_456_789).UTC()
	return vfs.Attr{Mode: mode, Atime: at, Mtime: at.Add(time.Second), Ctime: at.Add(2 * time.Second)}
}

// pattern returns n bytes that differ from place to place.
func pattern(seed, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8*13 + seed*31 + 1)
	}
	return p
}

func writeFile(t testing.TB, f *ext4.FS, dir vfs.Ino, name string, data []byte) vfs.Ino {
	t.Helper()
	ino, err := f.Create(t.Context(), dir, name, attr(syscall.S_IFREG|0o644))
	if err != nil {
		t.Fatal(err)
	}
	setContent(t, f, ino, data)
	return ino
}

func setContent(t testing.TB, f *ext4.FS, ino vfs.Ino, data []byte) {
	t.Helper()
	w, err := f.Writer(t.Context(), ino, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, f *ext4.FS, ino vfs.Ino) []byte {
	t.Helper()
	st, err := f.Stat(t.Context(), ino)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, st.Size)
	if n, err := f.ReadAt(t.Context(), ino, data, 0); n != len(data) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read inode %d: %d of %d bytes, %v", ino, n, len(data), err)
	}
	return data
}

func TestFormatIsClean(t *testing.T) {
	for _, size := range []int64{1 << 20, 64 << 20, 129 << 20, 200<<20 + 512, 1 << 30, 64 << 30} {
		t.Run(fmt.Sprint(size>>20), func(t *testing.T) {
			v := newFile(t, size)
			format(t, v)
			fsck(t, v)
		})
	}
}

func TestFormatIsSparse(t *testing.T) {
	v := newFile(t, 64<<30)
	format(t, v)
	var st syscall.Stat_t
	if err := syscall.Stat(v.Name(), &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got > 10<<20 {
		t.Errorf("64 GiB take %d bytes, want at most 10 MiB", got)
	}
}

func TestFormatRefusesSmallDevice(t *testing.T) {
	for _, size := range []int64{0, 512, 64 << 10} {
		err := ext4.Format(t.Context(), backendtest.NewMemVolume(size), ext4.FormatOptions{})
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d bytes: got %v, want ENOSPC", size, err)
		}
	}
}

func TestErrors(t *testing.T) {
	ctx := t.Context()
	f := format(t, newFile(t, 64<<20))
	file := writeFile(t, f, ext4.RootIno, "file", []byte("x"))
	dir := must(f.Create(ctx, ext4.RootIno, "dir", attr(syscall.S_IFDIR|0o755)))
	writeFile(t, f, dir, "inner", nil)
	last := func(_ any, err error) error { return err }
	for _, c := range []struct {
		name string
		got  error
		want error
	}{
		{"lookup of nothing", last(f.Lookup(ctx, ext4.RootIno, "none")), fs.ErrNotExist},
		{"lookup in a file", last(f.Lookup(ctx, file, "x")), syscall.ENOTDIR},
		{"create twice", last(f.Create(ctx, ext4.RootIno, "file", attr(syscall.S_IFREG))), fs.ErrExist},
		{"symlink over a name", last(f.Symlink(ctx, ext4.RootIno, "dir", "x", attr(0))), fs.ErrExist},
		{"link over a name", f.Link(ctx, ext4.RootIno, "dir", file), fs.ErrExist},
		{"link to a directory", f.Link(ctx, ext4.RootIno, "dir2", dir), syscall.EPERM},
		{"create in a file", last(f.Create(ctx, file, "x", attr(syscall.S_IFREG))), syscall.ENOTDIR},
		{"remove nothing", f.Remove(ctx, ext4.RootIno, "none"), fs.ErrNotExist},
		{"remove a full directory", f.Remove(ctx, ext4.RootIno, "dir"), syscall.ENOTEMPTY},
		{"remove dot", f.Remove(ctx, dir, "."), syscall.EINVAL},
		{"name with slash", last(f.Create(ctx, dir, "a/b", attr(syscall.S_IFREG))), syscall.EINVAL},
		{"long name", last(f.Create(ctx, dir, string(make([]byte, 256)), attr(syscall.S_IFREG))), syscall.ENAMETOOLONG},
		{"no type", last(f.Create(ctx, dir, "x", attr(0o644))), syscall.EINVAL},
		{"other type", f.SetAttr(ctx, file, attr(syscall.S_IFDIR)), syscall.EINVAL},
		{"write a directory", last(f.Writer(ctx, dir, 0)), syscall.EINVAL},
		{"stat of nothing", last(f.Stat(ctx, 1<<31)), syscall.EINVAL},
		{"foreign attribute", f.SetXattrs(ctx, file, map[string][]byte{"other.x": nil}), syscall.EOPNOTSUPP},
		{"huge attribute", f.SetXattrs(ctx, file, map[string][]byte{"user.x": make([]byte, 5000)}), syscall.ENOSPC},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestContent(t *testing.T) {
	v := newFile(t, 256<<20)
	f := format(t, v)
	data := map[string][]byte{}
	for i, n := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 100_000, 1 << 20, 1<<20 + 1, 5 << 20} {
		name := fmt.Sprint(n)
		data[name] = pattern(i, n)
		writeFile(t, f, ext4.RootIno, name, data[name])
	}
	flush(t, f)
	fsck(t, v)
	f = open(t, v)
	for name, want := range data {
		ino := must(f.Lookup(t.Context(), ext4.RootIno, name))
		if got := readFile(t, f, ino); !bytes.Equal(got, want) {
			t.Errorf("file of %s bytes reads back differently", name)
		}
		p := make([]byte, 700)
		at := len(want) / 3
		n, _ := f.ReadAt(t.Context(), ino, p, int64(at))
		if !bytes.Equal(p[:n], want[at:min(at+700, len(want))]) {
			t.Errorf("file of %s bytes reads back differently from %d", name, at)
		}
	}
}
