// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// sealed is a volume that can only be read.
type sealed struct{ backend.Volume }

func TestReader(t *testing.T) {
	v := backendtest.NewMemVolume(256 << 20)
	f := format(t, v)
	data := pattern(1, 300_000)
	data = append(data, make([]byte, 64<<10)...) // a hole
	data = append(data, pattern(2, 5000)...)
	dir := must(f.Create(t.Context(), ext4.RootIno, "d", attr(syscall.S_IFDIR|0o755)))
	ino := writeFile(t, f, dir, "f", data)
	link := must(f.Symlink(t.Context(), dir, "l", "f", attr(0o777)))
	flush(t, f)

	r, err := ext4.NewReader(t.Context(), sealed{v})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := r.ReadAt(t.Context(), ino, got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("content differs, %v", err)
	}
	if target, err := r.Readlink(t.Context(), link); target != "f" || err != nil {
		t.Errorf("link to %q, %v", target, err)
	}
	if st, err := r.Stat(t.Context(), ino); st.Size != int64(len(data)) || err != nil {
		t.Errorf("%+v, %v", st, err)
	}
	b, ok := r.InodeBlock(ino)
	block := make([]byte, b.Len)
	must(v.ReadAt(t.Context(), block, b.Off))
	if size := binary.LittleEndian.AppendUint32(nil, uint32(len(data))); !ok || !bytes.Contains(block, size) {
		t.Errorf("no inode in the %d bytes at %d", b.Len, b.Off)
	}
	if _, ok := r.InodeBlock(1 << 31); ok {
		t.Error("there is an inode behind the last")
	}
	names := map[string]vfs.Ino{}
	for e, err := range r.ReadDir(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		names[e.Name] = e.Ino
	}
	if diff := cmp.Diff(map[string]vfs.Ino{"f": ino, "l": link}, names); diff != "" {
		t.Error(diff)
	}
}

func second[T any](_ T, err error) error { return err }

// TestExtents reads a file by what the extents say.
func TestExtents(t *testing.T) {
	v := backendtest.NewMemVolume(256 << 20)
	f := format(t, v)
	data := pattern(3, 100_000)
	ino := must(f.Create(t.Context(), ext4.RootIno, "f", attr(syscall.S_IFREG|0o644)))
	w := must(f.Writer(t.Context(), ino, 0))
	must(w.Write(data[:20<<10]))
	if err := errors.Join(w.Skip(40<<10), second(w.Write(data[60<<10:])), w.Close()); err != nil {
		t.Fatal(err)
	}
	flush(t, f)
	r, err := ext4.NewReader(t.Context(), sealed{v})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	all, err := r.Extents(t.Context(), ino, 0, 1<<62)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		p := make([]byte, e.Len)
		must(v.ReadAt(t.Context(), p, e.Off))
		got = append(got, p...)
	}
	want := bytes.Join([][]byte{data[:20<<10], data[60<<10:]}, nil)
	if !bytes.Equal(got[:len(want)], want) || len(got)-len(want) >= 4096 {
		t.Errorf("extents of %d bytes do not hold the %d of the file", len(got), len(want))
	}
	for _, tc := range []struct{ off, n, want int64 }{
		{0, 1, 4096}, {4095, 2, 8192}, {30 << 10, 4096, 0}, {99_999, 1 << 62, 4096}, {100_000, 1, 0}, {1 << 62, 1 << 62, 0}, {0, -1, 0},
	} {
		var n int64
		parts, err := r.Extents(t.Context(), ino, tc.off, tc.n)
		for _, p := range parts {
			n += p.Len
		}
		if n != tc.want || err != nil {
			t.Errorf("%d bytes at %d lie in %d, %v; want %d", tc.n, tc.off, n, err, tc.want)
		}
	}
	if _, err := r.Extents(t.Context(), ext4.RootIno, 0, 1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("extents of a directory: %v", err)
	}
}
