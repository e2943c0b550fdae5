// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// mount shows v through the kernel's EROFS until the test ends.
func mount(t testing.TB, v fileVolume) (dir string) {
	t.Helper()
	need.Root(t)
	dir = t.TempDir()
	var missing error
	if known := must(os.ReadFile("/proc/filesystems")); !bytes.Contains(known, []byte("\terofs\n")) {
		missing = errors.New("the kernel does not know it")
	}
	need.Capability(t, "erofs", missing)
	if err := syscall.Mount(v.Name(), dir, "erofs", syscall.MS_RDONLY, ""); err != nil {
		t.Fatal("mount: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// describeDir lists what is in a mounted file system, as node.describe does.
func describeDir(dir, name string) ([]string, error) {
	full := filepath.Join(dir, name)
	var st syscall.Stat_t
	if err := syscall.Lstat(full, &st); err != nil {
		return nil, err
	}
	a := vfs.Attr{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		Atime: time.Unix(st.Atim.Unix()), Mtime: time.Unix(st.Mtim.Unix()), Ctime: time.Unix(st.Ctim.Unix()),
	}
	xattrs, err := listXattrs(full)
	if err != nil {
		return nil, err
	}
	text, err := contentDir(full, a.Mode)
	if err != nil {
		return nil, err
	}
	lines := []string{line(name, a, int(st.Nlink), st.Size, text, xattrs)}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return lines, nil
	}
	entries, err := os.ReadDir(full)
	for _, e := range entries {
		more, err := describeDir(dir, path.Join(name, e.Name()))
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	return lines, err
}

func contentDir(full string, mode uint32) (string, error) {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := os.Readlink(full)
		return body(nil, target), err
	case syscall.S_IFREG:
		data, err := os.ReadFile(full)
		return body(data, ""), err
	}
	return "", nil
}

func listXattrs(full string) (map[string][]byte, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(full, buf)
	if err != nil {
		return nil, fmt.Errorf("list attributes of %s: %w", full, err)
	}
	m := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		k, err := unix.Lgetxattr(full, name, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of %s: %w", name, full, err)
		}
		m[name] = value[:k]
	}
	return m, nil
}

// posixACL is the form of an ACL for users: of the owner, of user 1000, of
// the group, the mask and of others.
func posixACL() []byte {
	return []byte{
		2, 0, 0, 0,
		1, 0, 6, 0, 255, 255, 255, 255,
		2, 0, 7, 0, 0xe8, 3, 0, 0,
		4, 0, 4, 0, 255, 255, 255, 255,
		0x10, 0, 7, 0, 255, 255, 255, 255,
		0x20, 0, 4, 0, 255, 255, 255, 255,
	}
}

// everything makes files of every kind.
func everything(t testing.TB, p *pair) {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	reg, dir := attr(syscall.S_IFREG|0o4755), attr(syscall.S_IFDIR|0o1777)
	ok(p.create("/d", dir))
	ok(p.create("/d/e", dir))
	ok(p.create("/file", reg))
	ok(p.write("/file", 300_000, pattern(1, 300_000)))
	ok(p.create("/d/holes", reg))
	ok(p.write("/d/holes", 0, pattern(2, 5000), make([]byte, 1<<20), pattern(3, 100), make([]byte, 50_001)))
	ok(p.create("/only-hole", reg))
	ok(p.write("/only-hole", 1<<20, nil, make([]byte, 1<<20)))
	ok(p.link("/d/hard", "/file"))
	for _, n := range []int{1, 59, 60, 61, 255, 1000, 4095} {
		ok(p.symlink(fmt.Sprintf("/d/link%d", n), strings.Repeat("l", n), attr(0o777)))
	}
	ok(p.link("/d/hard-link", "/d/link255"))
	for i, kind := range []uint32{syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK, syscall.S_IFCHR, syscall.S_IFBLK} {
		a := attr(kind | 0o640)
		if kind == syscall.S_IFCHR || kind == syscall.S_IFBLK {
			a.Major, a.Minor = []uint32{1, 255, 256, 4095}[i%4], []uint32{3, 255, 256, 1<<20 - 1}[i%4]
		}
		ok(p.create(fmt.Sprintf("/node%d", i), a))
	}
	ok(p.create("/zero-device", attr(syscall.S_IFCHR)))
	for i, sec := range []int64{-1 << 31, -1, 0, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<33 + 5, 1<<34 - 1<<31 - 1} {
		a := reg
		a.UID, a.GID = 1<<31+uint32(i), 70_000+uint32(i)
		a.Atime, a.Mtime, a.Ctime = time.Unix(sec, 1), time.Unix(sec, 999_999_999), time.Unix(sec, 0)
		ok(p.create(fmt.Sprintf("/time%d", i), a))
	}
	for _, name := range []string{"ünï", "\x80\xff", strings.Repeat("n", 255), "new\nline", " "} {
		ok(p.create("/d/e/"+name, reg))
	}
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	ok(p.setXattrs("/file", map[string][]byte{"security.capability": capability, "user.empty": {}, "user.a": []byte("b")}))
	acl := attr(syscall.S_IFREG | 0o674)
	ok(p.create("/acl", acl))
	ok(p.setXattrs("/acl", map[string][]byte{"system.posix_acl_access": posixACL()}))
	ok(p.setXattrs("/d", map[string][]byte{"system.posix_acl_default": posixACL(), "trusted.overlay.opaque": []byte("y")}))
	ok(p.setXattrs("/d/holes", map[string][]byte{"user.big": pattern(4, 3000), "user.small": []byte("s"), "trusted.x": pattern(5, 500)}))
	ok(p.setXattrs("/d/link1", map[string][]byte{"trusted.link": bytes.Repeat([]byte("v"), 1000)}))
	ok(p.setXattrs("/d/link1000", map[string][]byte{"trusted.link": bytes.Repeat([]byte("v"), 1000)}))
	ok(p.setXattrs("/node0", map[string][]byte{"trusted.fifo": []byte("v")}))
}

func TestKernelSeesTheSame(t *testing.T) {
	v := newFile(t, 96<<20)
	p := must(newPair(t.Context(), format(t, v)))
	everything(t, p)
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	flush(t, p.fs)
	if err := p.checkRead(v); err != nil {
		t.Error(err)
	}
	p.kernelAgrees(t, v)
	fsck(t, v)
}

// kernelAgrees compares what the kernel sees on v with the model.
func (p *pair) kernelAgrees(t testing.TB, v fileVolume) {
	t.Helper()
	got, want := must(describeDir(mount(t, v), "/")), p.root.describe("/")
	slices.Sort(got)
	slices.Sort(want)
	if err := sameLines(got, want); err != nil {
		t.Error(err)
	}
}

// bigDir makes n files in a directory of their own, and removes every tenth.
func bigDir(t testing.TB, f *erofs.FS, n int) (names map[string]bool) {
	t.Helper()
	dir, err := f.Create(t.Context(), f.Root(), "big", attr(syscall.S_IFDIR|0o755))
	if err != nil {
		t.Fatal(err)
	}
	names = make(map[string]bool, n)
	a := attr(syscall.S_IFREG | 0o644)
	for i := range n {
		name := fmt.Sprintf("a fíle with number %d", i)
		if _, err := f.Create(t.Context(), dir, name, a); err != nil {
			t.Fatal(err)
		}
		names[name] = true
	}
	for i := 0; i < n; i += 10 {
		name := fmt.Sprintf("a fíle with number %d", i)
		if err := f.Remove(t.Context(), dir, name); err != nil {
			t.Fatal(err)
		}
		delete(names, name)
	}
	return names
}

func TestLargeDirectory(t *testing.T) {
	v := newFile(t, 4<<30)
	f := format(t, v)
	names := bigDir(t, f, 30_000/slow)
	flush(t, f)
	fsck(t, v)
	f = open(t, v)
	dir := must(f.Lookup(t.Context(), f.Root(), "big"))
	seen := map[string]bool{}
	for e, err := range f.ReadDir(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		seen[e.Name] = true
	}
	if !maps.Equal(seen, names) {
		t.Errorf("%d names are listed, want %d", len(seen), len(names))
	}
	if _, err := f.Lookup(t.Context(), dir, "a fíle with number 0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed name: got %v, want fs.ErrNotExist", err)
	}
	big := filepath.Join(mount(t, v), "big")
	for name := range names {
		if _, err := os.Lstat(filepath.Join(big, name)); err != nil {
			t.Fatal(err)
		}
	}
}
