// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A patch is data at an offset of a file that otherwise is a hole.
type patch struct {
	off  int64
	data []byte
}

// writePatches makes a file of size bytes with the patches given.
func writePatches(t testing.TB, f *ext4.FS, name string, size int64, patches []patch) vfs.Ino {
	t.Helper()
	ino := must(f.Create(t.Context(), ext4.RootIno, name, attr(syscall.S_IFREG|0o644)))
	w := must(f.Writer(t.Context(), ino, size))
	at := int64(0)
	for _, p := range patches {
		if err := w.Skip(p.off - at); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p.data); err != nil {
			t.Fatal(err)
		}
		at = p.off + int64(len(p.data))
	}
	if err := errors.Join(w.Skip(size-at), w.Close()); err != nil {
		t.Fatal(err)
	}
	return ino
}

// checkPatches reads the patches and the bytes around them from r.
func checkPatches(t testing.TB, r io.ReaderAt, size int64, patches []patch) {
	t.Helper()
	for _, p := range patches {
		want := append(make([]byte, 100), p.data...)
		got := make([]byte, len(want))
		if n, err := r.ReadAt(got, p.off-100); n != len(got) {
			t.Fatalf("read at %d: %d bytes, %v", p.off-100, n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("bytes differ at %d", p.off)
		}
	}
	if n, err := r.ReadAt(make([]byte, 10), size-5); n != 5 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: got %d bytes, %v; want 5, EOF", n, err)
	}
}

// fileReader reads a file through the package.
type fileReader struct {
	t   testing.TB
	f   *ext4.FS
	ino vfs.Ino
}

func (r fileReader) ReadAt(p []byte, off int64) (int, error) {
	return r.f.ReadAt(r.t.Context(), r.ino, p, off)
}

func TestSparseFile(t *testing.T) {
	const size = 5<<30 + 12345
	patches := []patch{{4096, pattern(1, 4096)}, {1<<30 + 77, pattern(2, 100_000)}, {4<<30 - 1, pattern(3, 2)}, {5 << 30, pattern(4, 12000)}}
	v := newFile(t, 16<<30)
	f := format(t, v)
	ino := writePatches(t, f, "sparse", size, patches)
	flush(t, f)
	fsck(t, v)
	f = open(t, v)
	checkPatches(t, fileReader{t, f, ino}, size, patches)
	var st syscall.Stat_t
	if err := syscall.Stat(v.Name(), &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got > 12<<20 {
		t.Errorf("the file system takes %d bytes, want at most 12 MiB", got)
	}
	file, err := os.Open(filepath.Join(mount(t, v), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	checkPatches(t, file, size, patches)
}

// TestDeepExtentTree makes trees of up to three levels, and removes them.
func TestDeepExtentTree(t *testing.T) {
	v := newFile(t, 2<<30)
	f := format(t, v)
	files := map[int]vfs.Ino{}
	sets := map[int][]patch{}
	for _, n := range []int{4, 5, 340, 2000, 20_000} {
		var patches []patch
		for i := range n {
			patches = append(patches, patch{int64(i)*8192 + 4096, []byte{byte(i), byte(i >> 8), 1}})
		}
		sets[n] = patches
		files[n] = writePatches(t, f, fmt.Sprint(n), int64(n)*8192+4096+5, patches)
	}
	flush(t, f)
	fsck(t, v)
	f = open(t, v)
	for n, ino := range files {
		checkPatches(t, fileReader{t, f, ino}, int64(n)*8192+4096+5, sets[n])
	}
	for n := range files {
		if err := f.Remove(t.Context(), ext4.RootIno, fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, f)
	fsck(t, v)
}

// TestRemovedSpaceIsFree fills the file system twice.
func TestRemovedSpaceIsFree(t *testing.T) {
	v := newFile(t, 64<<20)
	f := format(t, v)
	full := 0
	for round := range 3 {
		ino := must(f.Create(t.Context(), ext4.RootIno, "filler", attr(syscall.S_IFREG|0o644)))
		w := must(f.Writer(t.Context(), ino, 0))
		n, err := w.Write(pattern(1, 70<<20))
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("round %d: 70 MiB into 64: got %v, want ENOSPC", round, err)
		}
		if round > 0 && n != full {
			t.Errorf("round %d: %d bytes fit, %d before", round, n, full)
		}
		full = n
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Remove(t.Context(), ext4.RootIno, "filler"); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, f)
	fsck(t, v)
}

// TestFullStaysSound makes files and directories until nothing more fits.
func TestFullStaysSound(t *testing.T) {
	v := newFile(t, 16<<20)
	f := format(t, v)
	dir, full := ext4.RootIno, 0
	for i := 0; full < 40; i++ {
		name := fmt.Sprintf("%d %s", i, bytes.Repeat([]byte("n"), 200))
		kind := []uint32{syscall.S_IFREG, syscall.S_IFDIR}[i/4%2]
		ino, err := f.Create(t.Context(), dir, name, attr(kind|0o700))
		if err == nil && kind == syscall.S_IFREG {
			w := must(f.Writer(t.Context(), ino, 0))
			_, err = w.Write(pattern(i, 30_000))
			err = errors.Join(err, w.Close())
		}
		switch {
		case errors.Is(err, syscall.ENOSPC):
			full++
		case err != nil:
			t.Fatal(err)
		case kind == syscall.S_IFDIR && i%37 == 0:
			dir = ino
		}
	}
	flush(t, f)
	fsck(t, v)
}
