// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// osBlob is a fetcher.Blob over a file.
type osBlob struct {
	*os.File
	size int64
}

func (b osBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return b.File.ReadAt(p, off)
}
func (b osBlob) Size() int64 { return b.size }

// golden returns the golden layer below a new writable one.
func golden(t testing.TB, layer string) *lsmt.Disk {
	t.Helper()
	_, files := need.Golden(t, layer)
	file := must(os.Open(files[layer].Path))
	stack := must(lsmt.Merge([]*lsmt.Layer{must(lsmt.Open(t.Context(), osBlob{file, files[layer].Size}))}))
	dir := t.TempDir()
	upper := must(lsmt.Create(filepath.Join(dir, "data"), filepath.Join(dir, "index"), lsmt.CreateOptions{VirtualSize: stack.Size()}))
	disk := must(lsmt.Overlay(stack, upper))
	t.Cleanup(func() { disk.Close() })
	return disk
}

// flatten copies v to a sparse file.
func flatten(t testing.TB, v backend.Volume) fileVolume {
	t.Helper()
	out := newFile(t, v.Size())
	buf, zeroes := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < v.Size(); off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), v.Size()-off)]
		if _, err := v.ReadAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(b, zeroes[:len(b)]) {
			continue
		}
		if _, err := out.WriteAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestFormatLikeReference compares Format with the reference's tools. Only
// lost+found may differ: theirs has an index that e2fsck complains of.
func TestFormatLikeReference(t *testing.T) {
	want := golden(t, "raw/mkfs.lsmt")
	got := backendtest.NewMemVolume(want.Size())
	format(t, got)
	inode11 := int64(131*4096 + 10*256)
	differ := map[int64]bool{}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < want.Size(); off += 1 << 20 {
		must(want.ReadAt(t.Context(), a, off))
		must(got.ReadAt(t.Context(), b, off))
		if bytes.Equal(a, b) {
			continue
		}
		for i := range a {
			if at := off + int64(i); a[i] != b[i] && at/4096 != 644 {
				differ[at-inode11] = true
			}
		}
	}
	if len(differ) != 1 || !differ[0x21] { // i_flags
		t.Errorf("bytes that differ, from inode 11: %v; want its flags only", differ)
	}
}

// listed describes ino as the golden listings do, its path left out.
func listed(t testing.TB, f *ext4.FS, ino vfs.Ino) string {
	t.Helper()
	st := must(f.Stat(t.Context(), ino))
	size, tail := fmt.Sprint(st.Size), "-"
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		size = "d"
	case syscall.S_IFREG:
		tail = fmt.Sprintf("%x", sha256.Sum256(readFile(t, f, ino)))[:24]
	case syscall.S_IFLNK:
		tail = "->" + must(f.Readlink(t.Context(), ino))
	case syscall.S_IFCHR, syscall.S_IFBLK:
		tail = fmt.Sprintf("%d:%d", st.Major, st.Minor)
	}
	xattrs := must(f.Xattrs(t.Context(), ino))
	var attrs []string
	for k, v := range xattrs {
		attrs = append(attrs, fmt.Sprintf("%s=%x", k, v[:min(40, len(v))])) // as the listings do
	}
	slices.Sort(attrs)
	return fmt.Sprintf("%d %d %d %s %d ino%d %s %s", st.UID, st.GID, st.Links, size, st.Mtime.Unix(), ino, tail, strings.Join(attrs, " "))
}

func TestReadReference(t *testing.T) {
	f := open(t, golden(t, "raw/l0.lsmt"))
	var got, want []string
	var walk func(dir vfs.Ino)
	walk = func(dir vfs.Ino) {
		got = append(got, listed(t, f, dir))
		for e, err := range f.ReadDir(t.Context(), dir) {
			switch {
			case err != nil:
				t.Fatal(err)
			case e.Type == vfs.TypeDirectory:
				walk(e.Ino)
			default:
				got = append(got, listed(t, f, e.Ino))
			}
		}
	}
	walk(ext4.RootIno)
	dir, _ := need.Golden(t, "lists/l0.txt")
	text := must(os.ReadFile(filepath.Join(dir, "lists/l0.txt")))
	for l := range strings.Lines(string(text)) {
		_, l, _ = strings.Cut(strings.TrimSuffix(l, "\n"), " ") // not the mode's letters
		head, _, _ := strings.Cut(l, " '")
		tail := l[strings.LastIndex(l, "' ")+2:]
		want = append(want, head+" "+tail)
	}
	slices.Sort(got)
	slices.Sort(want)
	if err := sameLines(got, want); err != nil {
		t.Error(err)
	}
}

// removeAll empties the directory dir.
func removeAll(t testing.TB, f *ext4.FS, dir vfs.Ino) {
	t.Helper()
	var entries []vfs.DirEntry
	for e, err := range f.ReadDir(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	for _, e := range entries {
		if e.Type == vfs.TypeDirectory {
			removeAll(t, f, e.Ino)
		}
		if err := f.Remove(t.Context(), dir, e.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEditReference replaces all that a layer of the reference has, on the
// merged device.
func TestEditReference(t *testing.T) {
	disk := golden(t, "raw/l0.lsmt")
	f := open(t, disk)
	removeAll(t, f, ext4.RootIno)
	must(f.Create(t.Context(), ext4.RootIno, "lost+found", vfs.Attr{Mode: syscall.S_IFDIR | 0o700}))
	p := must(newPair(t.Context(), f))
	everything(t, p)
	flush(t, f)
	v := flatten(t, disk)
	fsck(t, v)
	p.fs = open(t, disk)
	if err := p.check(); err != nil {
		t.Error(err)
	}
}
