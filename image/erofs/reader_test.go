// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A logged volume notes which blocks are read.
type logged struct {
	backend.Volume
	read map[int64]bool
}

func (l *logged) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	for at := off &^ 4095; at < off+int64(len(p)); at += 4096 {
		l.read[at] = true
	}
	return l.Volume.ReadAt(ctx, p, off)
}

// TestReaderSaysWhatItReads compares what Extents and InodeBlock say with what
// is then read.
func TestReaderSaysWhatItReads(t *testing.T) {
	v := newFile(t, 64<<20)
	p := must(newPair(t.Context(), format(t, v)))
	everything(t, p)
	flush(t, p.fs)
	for path, n := range p.root.files("/") {
		l := &logged{v, map[int64]bool{}}
		r := must(erofs.NewReader(t.Context(), l))
		ino := r.Root()
		for _, name := range bytes.FieldsFunc([]byte(path), func(r rune) bool { return r == '/' }) {
			ino = must(r.Lookup(t.Context(), ino, string(name)))
		}
		r = must(erofs.NewReader(t.Context(), l))
		clear(l.read)
		must(r.Stat(t.Context(), ino))
		if block, ok := r.InodeBlock(ino); !ok || !maps.Equal(l.read, map[int64]bool{block.Off: true}) || block.Len != 4096 {
			t.Errorf("the inode of %s is in %v, read were %v", path, block, l.read)
		}
		for _, off := range []int64{0, 1, 4095, 4096, 5000, int64(len(n.data)) - 1} {
			if off < 0 || off >= int64(len(n.data)) {
				continue
			}
			size := min(7000, int64(len(n.data))-off)
			want := map[int64]bool{}
			for _, e := range must(r.Extents(t.Context(), ino, off, size)) {
				for at := e.Off; at < e.Off+e.Len; at += 4096 {
					want[at] = true
				}
			}
			clear(l.read)
			got := make([]byte, size)
			if _, err := r.ReadAt(t.Context(), ino, got, off); err != nil || !bytes.Equal(got, n.data[off:off+size]) {
				t.Errorf("%s at %d: wrong content, %v", path, off, err)
			}
			if !maps.Equal(l.read, want) {
				t.Errorf("%s at %d: read %v, want %v", path, off, slices.Sorted(maps.Keys(l.read)), slices.Sorted(maps.Keys(want)))
			}
		}
	}
	r := must(erofs.NewReader(t.Context(), v))
	if b, ok := r.InodeBlock(1 << 40); ok {
		t.Errorf("an inode far away is in %v", b)
	}
	if b, ok := r.InodeBlock(0); ok {
		t.Errorf("no inode is in %v", b)
	}
}

// files yields the regular files below n that have content.
func (n *node) files(name string) map[string]*node {
	all := map[string]*node{}
	if n.attr.Mode&syscall.S_IFMT == syscall.S_IFREG {
		all[name] = n
	}
	for k, c := range n.names {
		maps.Copy(all, c.files(filepath.Join(name, k)))
	}
	return all
}

// TestLongPrefixes reads names of attributes that begin with what the file
// system defines, as the kernel does.
func TestLongPrefixes(t *testing.T) {
	v := newFile(t, 1<<20)
	f := format(t, v)
	file := must(f.Create(t.Context(), f.Root(), "file", attr(syscall.S_IFREG|0o644)))
	if err := f.SetXattrs(t.Context(), file, map[string][]byte{"user.Xx": []byte("one"), "trusted.Yy": []byte("two")}); err != nil {
		t.Fatal(err)
	}
	// A file holds the table: sizes, name spaces and what follows those.
	table := must(f.Create(t.Context(), f.Root(), "table", attr(syscall.S_IFREG)))
	w := must(f.Writer(t.Context(), table, 0))
	must(w.Write(append([]byte("\x05\x00\x01long\x00\x08\x00\x04longer."), make([]byte, 4096)...)))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	flush(t, f)
	image := make([]byte, 64<<10)
	must(v.ReadAt(t.Context(), image, 0))
	at := bytes.Index(image, []byte("\x05\x00\x01long"))
	super := image[1024:]
	super[8] &^= 1 // no checksum
	super[80] |= 0x40
	super[91] = 2
	binary.LittleEndian.PutUint32(super[92:], uint32(at/4))
	for i, entry := range []string{"\x02\x01\x03\x00Xx", "\x02\x04\x03\x00Yy"} {
		image[bytes.Index(image, []byte(entry))+1] = 0x80 | byte(i)
	}
	must(v.WriteAt(t.Context(), image, 0))

	r := must(erofs.NewReader(t.Context(), v))
	got := must(r.Xattrs(t.Context(), must(r.Lookup(t.Context(), r.Root(), "file"))))
	want := map[string][]byte{"user.longXx": []byte("one"), "trusted.longer.Yy": []byte("two")}
	same := func(a, b []byte) bool { return bytes.Equal(a, b) }
	if !maps.EqualFunc(got, want, same) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := must(listXattrs(filepath.Join(mount(t, v), "file"))); !maps.EqualFunc(got, want, same) {
		t.Errorf("the kernel has %q, want %q", got, want)
	}

	// Its attributes are kept as they are when the file is edited.
	f = open(t, v)
	if err := f.SetAttr(t.Context(), must(f.Lookup(t.Context(), f.Root(), "file")), vfs.Attr{Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	flush(t, f)
	r = must(erofs.NewReader(t.Context(), v))
	if got := must(r.Xattrs(t.Context(), must(r.Lookup(t.Context(), r.Root(), "file")))); !maps.EqualFunc(got, want, same) {
		t.Errorf("after an edit: got %q, want %q", got, want)
	}
}
