// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// TestLinkedFileOutgrowsItsPlace changes, in an upper layer, a file that lower
// layers gave several names: all of them lead to the one new file.
func TestLinkedFileOutgrowsItsPlace(t *testing.T) {
	c := newLayers(64<<20, false)
	p := must(newPair(t.Context(), format(t, c.top())))
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	next := func() {
		t.Helper()
		flush(t, p.fs)
		ok(c.next(t.Context()))
		p.fs = open(t, c.top())
	}
	for _, dir := range []string{"/a", "/a/b", "/c", "/c/d", "/e"} {
		ok(p.create(dir, attr(syscall.S_IFDIR|0o755)))
	}
	ok(p.create("/a/b/one", attr(syscall.S_IFREG|0o600)))
	ok(p.write("/a/b/one", 0, pattern(1, 9000)))
	ok(p.create("/c/small", attr(syscall.S_IFREG|0o600)))
	ok(p.write("/c/small", 0, pattern(2, 90)))
	for _, name := range []string{"/a/two", "/c/d/three"} {
		ok(p.link(name, "/a/b/one"))
	}
	next()
	ok(p.link("/e/four", "/c/small"))
	next()
	ok(p.setXattrs("/c/d/three", map[string][]byte{"user.large": pattern(3, 2000)}))
	ok(p.setXattrs("/e/four", map[string][]byte{"user.more": pattern(4, 200)}))
	ok(p.setXattrs("/c", map[string][]byte{"user.dir": pattern(5, 500)})) // whose directories have to know
	next()
	ok(p.remove("/a/b/one"))
	ok(p.setXattrs("/a/two", nil))
	next()
	v := c.flatten(t)
	ok(p.checkRead(v))
	r := must(erofs.NewReader(t.Context(), v))
	two := must(r.Lookup(t.Context(), must(r.Lookup(t.Context(), r.Root(), "a")), "two"))
	d := must(r.Lookup(t.Context(), must(r.Lookup(t.Context(), r.Root(), "c")), "d"))
	if three := must(r.Lookup(t.Context(), d, "three")); two != three {
		t.Errorf("hard links are files %d and %d", two, three)
	}
	p.kernelAgrees(t, v)
	fsck(t, v)
}

// TestLayerHasTheSizeOfItsChanges changes little in a large tree.
func TestLayerHasTheSizeOfItsChanges(t *testing.T) {
	c := newLayers(1<<30, false)
	f := format(t, c.top())
	for i := range 100 {
		dir := must(f.Create(t.Context(), f.Root(), fmt.Sprint("dir ", i), attr(syscall.S_IFDIR)))
		for k := range 100 {
			must(f.Create(t.Context(), dir, fmt.Sprint("file ", k), attr(syscall.S_IFREG)))
		}
	}
	flush(t, f)
	if err := c.next(t.Context()); err != nil {
		t.Fatal(err)
	}
	f = open(t, c.top())
	dir := must(f.Lookup(t.Context(), f.Root(), "dir 50"))
	must(f.Create(t.Context(), dir, "another file", attr(syscall.S_IFREG)))
	file := must(f.Lookup(t.Context(), must(f.Lookup(t.Context(), f.Root(), "dir 3")), "file 7"))
	if err := f.SetAttr(t.Context(), file, attr(0o640)); err != nil {
		t.Fatal(err)
	}
	flush(t, f)
	if err := c.next(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The ends of a layer are 12 KiB; then there are the superblock, a
	// directory, and three inodes.
	if first, second := len(c.done[0].file), len(c.done[1].file); second > 24<<10 || first < 20*second {
		t.Errorf("layers of %d and %d bytes", first, second)
	}
}

// TestSameCallsSameBytes makes the same layers twice.
func TestSameCallsSameBytes(t *testing.T) {
	var all [2][]byte
	for i := range all {
		c := newLayers(256<<20, false)
		newProgram(*seed, *edits/2).mustRun(t, c, nil)
		for _, l := range c.done {
			all[i] = append(all[i], l.file...)
		}
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("the same calls made different layers")
	}
}

func TestWriterRefuses(t *testing.T) {
	f := format(t, backendtest.NewMemVolume(1<<20))
	one := must(f.Create(t.Context(), f.Root(), "one", attr(syscall.S_IFREG)))
	two := must(f.Create(t.Context(), f.Root(), "two", attr(syscall.S_IFREG)))
	w := must(f.Writer(t.Context(), one, 0))
	want := func(what string, err, target error) {
		t.Helper()
		if !errors.Is(err, target) {
			t.Errorf("%s: got %v, want %v", what, err, target)
		}
	}
	_, err := f.Writer(t.Context(), two, 0)
	want("a second writer", err, syscall.EBUSY)
	want("Sync", f.Sync(t.Context()), syscall.EBUSY)
	want("Map without a target", w.Map(512, 10), errors.ErrUnsupported)
	want("Skip back", w.Skip(-1), syscall.EINVAL)
	want("Skip too far", w.Skip(1<<20), syscall.ENOSPC)
	want("Skip much too far", w.Skip(1<<63-1), syscall.ENOSPC)
	_, err = w.Write(make([]byte, 1<<20))
	want("Write too much", err, syscall.ENOSPC)
	must(w.Write([]byte("all the same")))
	want("Close", w.Close(), nil)
	want("Close again", w.Close(), fs.ErrClosed)
	_, err = w.Write([]byte("x"))
	want("Write after Close", err, fs.ErrClosed)
	_, err = f.Writer(t.Context(), f.Root(), 0)
	want("a writer of a directory", err, syscall.EINVAL)
	want("Sync", f.Sync(t.Context()), nil)
	if st := must(f.Stat(t.Context(), one)); st.Size != 12 {
		t.Errorf("size %d, want 12", st.Size)
	}
}

// TestMapRefuses maps what cannot be.
func TestMapRefuses(t *testing.T) {
	c := newLayers(64<<20, true)
	f := format(t, c.top())
	at := c.addTarget(pattern(1, 5000))
	for _, x := range []struct {
		name  string
		head  int64
		at, n int64
		want  error
	}{
		{"not at a block", 100, at, 5000, errors.ErrUnsupported},
		{"not at a sector", 4096, at + 1, 5000, syscall.EINVAL},
		{"before the target", 0, -512, 5000, syscall.EINVAL},
		{"backwards", 0, at, -1, syscall.EINVAL},
		{"too much", 0, at, 65 << 20, syscall.ENOSPC},
		{"as it should be", 4096, at, 5000, nil},
	} {
		w := must(f.Writer(t.Context(), must(f.Create(t.Context(), f.Root(), x.name, attr(syscall.S_IFREG))), 0))
		if err := w.Skip(x.head); err != nil {
			t.Fatal(err)
		}
		if err := w.Map(x.at, x.n); !errors.Is(err, x.want) {
			t.Errorf("%s: got %v, want %v", x.name, err, x.want)
		}
		if err := w.Skip(1); x.want == nil && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("Skip after Map: got %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMapThenWrite makes a file whose end is not in the target.
func TestMapThenWrite(t *testing.T) {
	c := newLayers(64<<20, true)
	f := format(t, c.top())
	data := pattern(1, 3*4096+100)
	w := must(f.Writer(t.Context(), must(f.Create(t.Context(), f.Root(), "file", attr(syscall.S_IFREG))), 0))
	if err := w.Map(c.addTarget(data[:8192]), 8192); err != nil {
		t.Fatal(err)
	}
	must(w.Write(data[8192:]))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	flush(t, f)
	if err := c.next(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := must(erofs.NewReader(t.Context(), must(c.disk(t.Context(), false))))
	got := make([]byte, len(data))
	must(r.ReadAt(t.Context(), must(r.Lookup(t.Context(), r.Root(), "file")), got, 0))
	if !bytes.Equal(got, data) {
		t.Error("wrong content")
	}
}

// TestFullDevice fills a device, and goes on with what there is room for.
func TestFullDevice(t *testing.T) {
	v := backendtest.NewMemVolume(64 << 10)
	f := format(t, v)
	for i := range 20 {
		w := must(f.Writer(t.Context(), must(f.Create(t.Context(), f.Root(), fmt.Sprint(i), attr(syscall.S_IFREG))), 0))
		_, err := w.Write(pattern(i, 4096))
		if full := i >= 15; errors.Is(err, syscall.ENOSPC) != full {
			t.Fatal(i, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
}

func TestNames(t *testing.T) {
	f := format(t, backendtest.NewMemVolume(1<<20))
	file := must(f.Create(t.Context(), f.Root(), "file", attr(syscall.S_IFREG)))
	dir := must(f.Create(t.Context(), f.Root(), "dir", attr(syscall.S_IFDIR)))
	must(f.Create(t.Context(), dir, "below", attr(syscall.S_IFREG)))
	create := func(dir vfs.Ino, name string, mode uint32) error {
		_, err := f.Create(t.Context(), dir, name, attr(mode))
		return err
	}
	lookup := func(dir vfs.Ino, name string) error {
		_, err := f.Lookup(t.Context(), dir, name)
		return err
	}
	symlink := func(target string) error {
		_, err := f.Symlink(t.Context(), dir, "link", target, attr(0))
		return err
	}
	for _, x := range []struct {
		what      string
		err, want error
	}{
		{"create .", create(dir, ".", syscall.S_IFREG), syscall.EINVAL},
		{"create nothing", create(dir, "", syscall.S_IFREG), syscall.EINVAL},
		{"create a/b", create(dir, "a/b", syscall.S_IFREG), syscall.EINVAL},
		{"create a long name", create(dir, strings.Repeat("x", 256), syscall.S_IFREG), syscall.ENAMETOOLONG},
		{"create a name that is there", create(f.Root(), "dir", syscall.S_IFREG), fs.ErrExist},
		{"create in a file", create(file, "x", syscall.S_IFREG), syscall.ENOTDIR},
		{"create a link", create(dir, "x", syscall.S_IFLNK), syscall.EINVAL},
		{"create of no type", create(dir, "x", 0o644), syscall.EINVAL},
		{"look up ..", lookup(dir, ".."), syscall.EINVAL},
		{"look up nothing", lookup(dir, "nothing"), fs.ErrNotExist},
		{"look up in a file", lookup(file, "x"), syscall.ENOTDIR},
		{"look up nowhere", lookup(1000, "x"), fs.ErrNotExist},
		{"link a directory", f.Link(t.Context(), f.Root(), "hard", dir), syscall.EPERM},
		{"link over a name", f.Link(t.Context(), f.Root(), "dir", file), fs.ErrExist},
		{"remove what is not empty", f.Remove(t.Context(), f.Root(), "dir"), syscall.ENOTEMPTY},
		{"remove nothing", f.Remove(t.Context(), f.Root(), "nothing"), fs.ErrNotExist},
		{"an empty link", symlink(""), syscall.ENAMETOOLONG},
		{"a long link", symlink(strings.Repeat("x", 4096)), syscall.ENAMETOOLONG},
		{"an attribute of the system's", f.SetXattrs(t.Context(), file, map[string][]byte{"system.x": nil}), syscall.EOPNOTSUPP},
		{"an attribute without a name", f.SetXattrs(t.Context(), file, map[string][]byte{"user.": nil}), syscall.EOPNOTSUPP},
		{"no ACL", f.SetXattrs(t.Context(), file, map[string][]byte{"system.posix_acl_access": {1, 2, 3}}), syscall.EINVAL},
		{"a large attribute", f.SetXattrs(t.Context(), file, map[string][]byte{"user.x": make([]byte, 1<<16)}), syscall.ENOSPC},
	} {
		if !errors.Is(x.err, x.want) {
			t.Errorf("%s: got %v, want %v", x.what, x.err, x.want)
		}
	}
}

// TestUnsupported opens what is refused, by its name.
func TestUnsupported(t *testing.T) {
	image := smallImage(t)
	const super = 1024
	for _, x := range []struct {
		field int
		value uint32
		want  error
		text  string
	}{
		{80, 0x80, errors.ErrUnsupported, "48-bit block addresses"},
		{80, 0x100, errors.ErrUnsupported, "a metadata box"},
		{80, 0x10000, errors.ErrUnsupported, "feature 0x10000"},
		{86, 1, errors.ErrUnsupported, "1 more devices"},
		{12, 9, errors.ErrUnsupported, "blocks of 2^9 bytes"},
		{0, 0x1234, erofs.ErrCorrupt, "magic"},
		{36, 1 << 20, erofs.ErrCorrupt, "blocks"},
		{40, 1 << 20, erofs.ErrCorrupt, "meta_blkaddr"},
		{14, 0xfff0, erofs.ErrCorrupt, "nid"},
		{128, 3, errors.ErrUnsupported, "compressed files"},
		{128, 7 << 1, erofs.ErrCorrupt, "layout 7"},
		{132, 0, erofs.ErrCorrupt, "i_mode"},
	} {
		damaged := bytes.Clone(image)
		damaged[super+8] &^= 1 // no checksum
		binary.LittleEndian.PutUint16(damaged[super+x.field:], uint16(x.value))
		if x.value > 0xffff {
			binary.LittleEndian.PutUint32(damaged[super+x.field:], x.value)
		}
		v := backendtest.NewMemVolume(1 << 20)
		must(v.WriteAt(t.Context(), damaged, 0))
		if _, err := erofs.Open(t.Context(), v); !errors.Is(err, x.want) || !strings.Contains(err.Error(), x.text) {
			t.Errorf("field %d: got %v, want %v: %s", x.field, err, x.want, x.text)
		}
	}
	image[super+16]++
	v := backendtest.NewMemVolume(1 << 20)
	must(v.WriteAt(t.Context(), image, 0))
	if _, err := erofs.NewReader(t.Context(), v); !errors.Is(err, erofs.ErrCorrupt) || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("got %v, want a bad checksum", err)
	}
}
