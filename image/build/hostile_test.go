// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func gzipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(p)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstandard(t testing.TB, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf)
	if err == nil {
		_, err = w.Write(p)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// noise is n bytes that do not compress.
func noise(n int) string {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p) // it never fails
	return string(p)
}

// plain returns the tar of a layer.
func plain(t testing.TB, l layer) []byte {
	t.Helper()
	p, err := io.ReadAll(l(t))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCompression: a layer is the same, however it is compressed.
func TestCompression(t *testing.T) {
	p := plain(t, members(t, file("a", noise(300_000)), file("b", "x")))
	half := len(p) / 2
	want := diffID(t, blob(p))
	for name, c := range map[string][]byte{
		"plain":          p,
		"gzip":           gzipped(t, p),
		"gzip members":   append(gzipped(t, p[:half]), gzipped(t, p[half:])...),
		"zstd":           zstandard(t, p),
		"zstd frames":    append(zstandard(t, p[:half]), zstandard(t, p[half:])...),
		"zstd skippable": append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"), zstandard(t, p)...),
	} {
		t.Run(name, func(t *testing.T) {
			if err := refused(t.Context(), newChain(t, 64<<20), bytes.NewReader(c), want); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDamaged: a layer that is not what it was is refused, and the chain goes
// on as if it had never been there.
func TestDamaged(t *testing.T) {
	good := plain(t, members(t, file("a", noise(300_000)), file("b", "x")))
	want := diffID(t, blob(good))
	z, s := gzipped(t, good), zstandard(t, good)
	flipped := bytes.Clone(z)
	flipped[len(z)/2] ^= 1
	changed := bytes.Clone(good)
	changed[1000] ^= 1
	for name, c := range map[string]struct {
		p    []byte
		want error // beyond that there is one
	}{
		"gzip cut short":      {z[:len(z)-10], io.ErrUnexpectedEOF},
		"gzip flipped":        {flipped, nil},
		"gzip trailing bytes": {append(bytes.Clone(z), strings.Repeat("x", 20)...), gzip.ErrHeader},
		"zstd cut short":      {s[:len(s)-10], io.ErrUnexpectedEOF},
		"tar cut short":       {good[:100_000], io.ErrUnexpectedEOF},
		"tar changed":         {changed, build.ErrDiffID},
		"tar with more":       {append(bytes.Clone(good), 0), build.ErrDiffID},
		"empty":               {nil, build.ErrDiffID},
		"no tar":              {[]byte(noise(5000)), tar.ErrHeader},
	} {
		t.Run(name, func(t *testing.T) {
			chain := newChain(t, 64<<20)
			err := refused(t.Context(), chain, bytes.NewReader(c.p), want)
			if err == nil || c.want != nil && !errors.Is(err, c.want) && !strings.Contains(err.Error(), c.want.Error()) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if n := strings.Count(fmt.Sprint(err), "decompress"); n > 1 {
				t.Errorf("the error says it %d times: %v", n, err)
			}
			flat(t, apply(t, chain, blob(good)))
		})
	}
}

// TestRefused: what no file system can hold, or no layer may say.
func TestRefused(t *testing.T) {
	deep := strings.Repeat("d/", 5000)
	for name, c := range map[string]struct {
		m    member
		want error
	}{
		"parent is a file":     {file("a/b", "x"), syscall.ENOTDIR},
		"links in a circle":    {file("loop/x", "x"), syscall.ELOOP},
		"link to nothing":      {link(tar.TypeLink, "b", "missing"), fs.ErrNotExist},
		"link to itself":       {link(tar.TypeLink, "a", "a"), fs.ErrNotExist},
		"link to a directory":  {link(tar.TypeLink, "b", "dir"), syscall.EPERM},
		"whiteout of the dir":  {file("dir/.wh..", ""), build.ErrUnsafe},
		"whiteout of no name":  {file("dir/.wh.", ""), build.ErrUnsafe},
		"long name":            {file(strings.Repeat("n", 256), "x"), syscall.ENAMETOOLONG},
		"deep path":            {file(deep+"x", "x"), build.ErrUnsafe},
		"empty symbolic link":  {link(tar.TypeSymlink, "s", ""), syscall.ENAMETOOLONG},
		"long symbolic link":   {link(tar.TypeSymlink, "s", strings.Repeat("x", 5000)), syscall.ENAMETOOLONG},
		"negative owner":       {member{tar.Header{Name: "x", Uid: -1}, ""}, errors.ErrUnsupported},
		"large owner":          {member{tar.Header{Name: "x", Gid: 1 << 32}, ""}, errors.ErrUnsupported},
		"large device":         {member{tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 1 << 13}, ""}, syscall.EINVAL},
		"unknown type":         {member{tar.Header{Name: "x", Typeflag: 'Z', Format: tar.FormatUSTAR}, ""}, errors.ErrUnsupported},
		"larger than the disk": {file("x", noise(81<<20)), syscall.EFBIG},
	} {
		t.Run(name, func(t *testing.T) {
			l := members(t, file("a", "x"), dir("dir"), link(tar.TypeSymlink, "loop", "loop"), c.m)
			err := refused(t.Context(), newChain(t, 80<<20), l(t), diffID(t, l))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "tar entry 3") {
				t.Errorf("error %v, want %v, of tar entry 3", err, c.want)
			}
		})
	}
}

// TestDiskFull: neither an image's disk nor ours being full costs more than the
// layer.
func TestDiskFull(t *testing.T) {
	l := members(t, file("a", noise(40<<20)), file("b", noise(40<<20)))
	t.Run("image", func(t *testing.T) {
		err := refused(t.Context(), newChain(t, 64<<20), l(t), diffID(t, l))
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), `"b"`) {
			t.Errorf("error %v, want ENOSPC and the file's name", err)
		}
	})
	t.Run("scratch", func(t *testing.T) {
		need.Root(t)
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir, 0) //nolint:errcheck // TempDir's removal would tell
		c := build.New(build.Options{Dir: dir})
		defer c.Close()
		if err := refused(t.Context(), c, l(t), diffID(t, l)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("error %v, want ENOSPC", err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	})
	t.Run("layer", func(t *testing.T) {
		c := newChain(t, 1<<30)
		if err := c.Build(t.Context(), &fullWriter{1 << 20}, l(t), build.Layer{DiffID: diffID(t, l)}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("error %v, want ENOSPC", err)
		}
	})
}

// A fullWriter has no space for more than left bytes.
type fullWriter struct{ left int }

func (w *fullWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return 0, syscall.ENOSPC
	}
	w.left -= len(p)
	return len(p), nil
}

// TestCancelled: a layer that stops arriving does not hold up its end.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(make([]byte, 100)) // less than a header
		cancel()
		w.CloseWithError(ctx.Err())
	}()
	if err := refused(ctx, newChain(t, 64<<20), r, diffID(t, blob(nil))); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestSparse: the holes of GNU's sparse formats, old and new, stay holes.
func TestSparse(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 5 << 30
	for _, off := range []int64{0, 1<<30 + 5, size - 4} {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"} {
		t.Run(format, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "l.tar")
			args := []string{"-cSf", archive, "-C", dir, format, "big"}
			if !strings.Contains(format, "gnu") {
				args = append([]string{"--format=posix"}, args...)
			}
			run(t, "tar", args...)
			sealed := apply(t, newChain(t, 8<<30), fileLayer(archive))
			root := mounted(t, flat(t, sealed))
			st := stat(t, filepath.Join(root, "big"))
			if st.Size != size || st.Blocks > 100 {
				t.Errorf("%d bytes in %d sectors, want %d in few", st.Size, st.Blocks, int64(size))
			}
			got, err := os.Open(filepath.Join(root, "big"))
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			p := make([]byte, 10)
			if _, err := got.ReadAt(p, 1<<30); err != nil || string(p) != "\x00\x00\x00\x00\x00data\x00" {
				t.Errorf("read %q, %v", p, err)
			}
		})
	}
}

// TestManyNames: a directory of 100,000 files, found one by one by the kernel,
// then half of them deleted.
func TestManyNames(t *testing.T) {
	const n = 100_000
	many := func(step int, name string) layer {
		return blob(archived(t, func(w *tar.Writer) error {
			for i := 0; i < n; i += step {
				h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf(name, i), Mode: 0o644}
				if err := w.WriteHeader(&h); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	root := mounted(t, flat(t, apply(t, newChain(t, 2<<30), many(1, "d/file-%d"), many(2, "d/.wh.file-%d"))))
	for i := 0; i < n; i += 7 { // of both kinds
		_, err := os.Lstat(filepath.Join(root, "d", fmt.Sprintf("file-%d", i)))
		if want := i%2 == 1; (err == nil) != want || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("file %d: %v, want it: %v", i, err, want)
		}
	}
}

// FuzzApply unpacks whatever it is given over a small file system.
func FuzzApply(f *testing.F) {
	f.Add(plain(f, members(f, file("a", "x"), dir("b"), link(tar.TypeSymlink, "b/c", "../a"), link(tar.TypeLink, "d", "a"))))
	f.Add(plain(f, members(f, file("lower/.wh.x", ""), file("lower/.wh..wh..opq", ""), file("a/../../b", "x"))))
	f.Fuzz(func(t *testing.T, p []byte) {
		vol := backendtest.NewMemVolume(8 << 20)
		if err := ext4.Format(t.Context(), vol, ext4.FormatOptions{}); err != nil {
			t.Fatal(err)
		}
		fsys, err := ext4.Open(t.Context(), vol)
		if err != nil {
			t.Fatal(err)
		}
		if err := build.Apply(t.Context(), fsys, bytes.NewReader(p)); err != nil && errors.Is(err, ext4.ErrCorrupt) {
			t.Errorf("the tar has damaged the file system: %v", err)
		}
	})
}

func stat(t testing.TB, name string) (st syscall.Stat_t) {
	t.Helper()
	if err := syscall.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st
}
