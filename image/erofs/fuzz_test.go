// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// smallImage returns a file system with a little of everything.
func smallImage(t testing.TB) []byte {
	t.Helper()
	v := backendtest.NewMemVolume(1 << 20)
	f := format(t, v)
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(dir vfs.Ino, name string, n int) vfs.Ino {
		ino := must(f.Create(ctx, dir, name, attr(syscall.S_IFREG|0o644)))
		w := must(f.Writer(ctx, ino, int64(n)))
		must(w.Write(pattern(n, n)))
		ok(w.Close())
		return ino
	}
	dir := must(f.Create(ctx, f.Root(), "dir", attr(syscall.S_IFDIR|0o755)))
	deep := must(f.Create(ctx, dir, "deep", attr(syscall.S_IFDIR|0o755)))
	small, large := write(dir, "small", 100), write(dir, "large", 5000)
	ok(f.Link(ctx, deep, "again", small))
	ok(f.SetXattrs(ctx, large, map[string][]byte{"user.a": []byte("b"), "trusted.c": pattern(1, 300)}))
	ok(f.SetXattrs(ctx, dir, map[string][]byte{"system.posix_acl_default": posixACL()}))
	must(f.Symlink(ctx, deep, "link", "../small", attr(0)))
	must(f.Create(ctx, deep, "null", vfs.Attr{Mode: syscall.S_IFCHR, Major: 1, Minor: 3}))
	for i := range 200 {
		must(f.Create(ctx, deep, fmt.Sprint("a longer name of file number ", i), attr(syscall.S_IFREG)))
	}
	flush(t, f)
	image := make([]byte, 48<<10)
	must(v.ReadAt(ctx, image, 0))
	return image
}

// A damager damages an image.
type damager struct {
	image []byte
	at    []int64 // bytes that are not zero, and some behind them
}

func newDamager(t testing.TB) damager {
	d := damager{image: smallImage(t)}
	for i := range d.image {
		if before := max(i-40, 0); bytes.Trim(d.image[before:i+1], "\x00") != nil {
			d.at = append(d.at, int64(i))
		}
	}
	return d
}

// volume returns the image with bytes changed as how says: four bytes choose
// one and what it becomes. The checksum counts as right.
func (d damager) volume(t testing.TB, how []byte) backend.Writer {
	t.Helper()
	image := bytes.Clone(d.image)
	for ; len(how) >= 4; how = how[4:] {
		i := int(how[0]) | int(how[1])<<8 | int(how[2])<<16
		image[d.at[i%len(d.at)]] = how[3]
	}
	image[1024+8] &^= 1
	v := backendtest.NewMemVolume(1 << 20)
	must(v.WriteAt(t.Context(), image, 0))
	return v
}

// A visitor looks at everything, as far as it goes.
type visitor struct {
	ctx  context.Context
	tree tree
	left int // files
}

func (v *visitor) visit(ino vfs.Ino, depth int) {
	st, err := v.tree.Stat(v.ctx, ino)
	if v.left--; err != nil || v.left < 0 {
		return
	}
	if m, err := v.tree.Xattrs(v.ctx, ino); err == nil {
		for name := range m {
			if !strings.Contains(name, ".") || strings.ContainsRune(name, 0) {
				panic("attribute " + name)
			}
		}
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		if s, err := v.tree.Readlink(v.ctx, ino); err == nil && int64(len(s)) != st.Size {
			panic("link of another size")
		}
	case syscall.S_IFREG:
		v.read(ino, st.Size)
	case syscall.S_IFDIR:
		if depth > 8 {
			return
		}
		last := ""
		for e, err := range v.tree.ReadDir(v.ctx, ino) {
			if err != nil || v.left < 0 {
				return
			}
			if e.Name <= last || strings.ContainsAny(e.Name, "/\x00") {
				panic("name " + e.Name)
			}
			last = e.Name
			v.visit(e.Ino, depth+1)
		}
	}
}

func (v *visitor) read(ino vfs.Ino, size int64) {
	r, ok := v.tree.(*erofs.Reader)
	if !ok {
		return
	}
	p := make([]byte, 10_000)
	for _, off := range []int64{0, 5000, size - 10, size / 2} {
		if n, err := r.ReadAt(v.ctx, ino, p, off); err == nil && n < len(p) || errors.Is(err, io.EOF) && off >= 0 && off+int64(n) < size {
			panic("a short read")
		}
		all, _ := r.Extents(v.ctx, ino, off, 1<<30)
		for _, e := range all {
			if e.Off < 0 || e.Len <= 0 || e.Off+e.Len > 1<<20 || (e.Off|e.Len)%4096 != 0 {
				panic(fmt.Sprint("extent ", e))
			}
		}
	}
}

func FuzzReader(f *testing.F) {
	d := newDamager(f)
	f.Add([]byte{})
	f.Add([]byte{100, 0, 0, 1, 120, 0, 0, 255})
	f.Fuzz(func(t *testing.T, how []byte) {
		r, err := erofs.NewReader(t.Context(), d.volume(t, how))
		if err != nil {
			return
		}
		(&visitor{ctx: t.Context(), tree: r, left: 500}).visit(r.Root(), 0)
	})
}

// FuzzEdit edits damaged images. Whether what was touched is damaged cannot be
// told here; but nothing may panic, hang or take much memory, and what was
// written can be opened.
func FuzzEdit(f *testing.F) {
	d := newDamager(f)
	f.Add([]byte{}, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add([]byte{100, 0, 0, 1, 120, 0, 0, 255}, []byte{2, 2, 2, 2, 1, 1, 200, 100, 0, 0})
	f.Fuzz(func(t *testing.T, how, ops []byte) {
		v := d.volume(t, how)
		fs, err := erofs.Open(t.Context(), v)
		if err != nil {
			return
		}
		e := hostileEditor{ctx: t.Context(), f: fs, dirs: []vfs.Ino{fs.Root()}}
		for i, op := range ops[:min(len(ops), 40)] {
			e.edit(i, op)
		}
		(&visitor{ctx: t.Context(), tree: fs, left: 500}).visit(fs.Root(), 0)
		if fs.Sync(t.Context()) != nil {
			return
		}
		r, err := erofs.NewReader(t.Context(), v)
		if err != nil {
			t.Fatal("what was written cannot be opened: ", err)
		}
		(&visitor{ctx: t.Context(), tree: r, left: 500}).visit(r.Root(), 0)
	})
}

// TestDamage sets bytes to something else, one at a time, and looks at and
// edits what comes of it.
func TestDamage(t *testing.T) {
	d := newDamager(t)
	ops := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	refused := 0
	for i := 0; i < len(d.at); i += 1 + len(d.at)/(800/slow) {
		v := d.volume(t, []byte{byte(i), byte(i >> 8), byte(i >> 16), ^d.image[d.at[i]]})
		fs, err := erofs.Open(t.Context(), v)
		if err != nil {
			refused++
			continue
		}
		e := hostileEditor{ctx: t.Context(), f: fs, dirs: []vfs.Ino{fs.Root()}}
		for i, op := range ops {
			e.edit(i, op)
		}
		(&visitor{ctx: t.Context(), tree: fs, left: 500}).visit(fs.Root(), 0)
		if fs.Sync(t.Context()) == nil {
			r := must(erofs.NewReader(t.Context(), v))
			(&visitor{ctx: t.Context(), tree: r, left: 500}).visit(r.Root(), 0)
		}
	}
	if refused == 0 {
		t.Error("no damage was refused at once")
	}
}

// A hostileEditor makes whatever edits go.
type hostileEditor struct {
	ctx  context.Context // of all edits
	f    *erofs.FS
	dirs []vfs.Ino
}

func (e *hostileEditor) edit(i int, op byte) {
	dir := e.dirs[int(op)%len(e.dirs)]
	name := fmt.Sprint(op)
	var file vfs.Ino
	for d, err := range e.f.ReadDir(e.ctx, dir) {
		if err != nil {
			break
		}
		if st, err := e.f.Stat(e.ctx, d.Ino); err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			e.dirs = append(e.dirs, d.Ino)
		}
		if file = d.Ino; d.Name > name {
			name = d.Name
			break
		}
	}
	switch i % 8 {
	case 0, 1:
		_ = e.f.Remove(e.ctx, dir, name)
	case 2:
		_, _ = e.f.Create(e.ctx, dir, name+"n", attr(syscall.S_IFREG))
	case 3:
		_, _ = e.f.Create(e.ctx, dir, name+"d", attr(syscall.S_IFDIR))
	case 4:
		_ = e.f.SetXattrs(e.ctx, file, map[string][]byte{"user.x": pattern(i, int(op)*8)})
	case 5:
		_ = e.f.Link(e.ctx, dir, name+"l", file)
	case 6:
		_ = e.f.SetAttr(e.ctx, file, attr(0o600))
	case 7:
		if w, err := e.f.Writer(e.ctx, file, 0); err == nil {
			_, _ = w.Write(pattern(i, int(op)*100))
			_ = w.Close()
		}
	}
}
