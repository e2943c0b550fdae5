// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestRandomLayers applies layers of random entries under few names, so that
// they meet in every way, and asserts that what containerd can unpack makes the
// same tree here. SEED repeats one run, RUNS says how many there are.
func TestRandomLayers(t *testing.T) {
	need.Root(t)
	if s := os.Getenv("SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		randomLayers(t, seed)
		return
	}
	runs, err := strconv.Atoi(os.Getenv("RUNS"))
	if err != nil {
		runs = 50
	}
	first := rand.Uint64() >> 16
	for i := range runs {
		randomLayers(t, first+uint64(i))
	}
}

// TestRandomFinds: what TestRandomLayers has found, once more by name.
func TestRandomFinds(t *testing.T) {
	xattr := func(m member, name, value string) member {
		m.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
		return m
	}
	again := link(tar.TypeLink, "again", "file")
	for name, layers := range map[string][]layer{
		"link out of a missing directory": {members(t, link(tar.TypeSymlink, "a", "missing/.."), file("a/x", "x"))},
		"opaque twice":                    {members(t, file("d/old", "x")), members(t, file("d/.wh..wh..opq", ""), file("d/implicit/x", "x"), file("d/.wh..wh..opq", ""))},
		"opaque after an inode was reused": {members(t, file("d/b/c", "x"), member{tar.Header{Name: "d/b", Typeflag: tar.TypeFifo}, ""},
			file("b/c", "x"), file(".wh..wh..opq", ""))},
		"opaque again after an inode was reused": {members(t, file("c/b/.wh..wh..opq", ""), member{tar.Header{Name: "c", Typeflag: tar.TypeFifo}, ""},
			file("x/a/d/f", "x"), file("x/.wh..wh..opq", ""), file("x/a/.wh..wh..opq", ""), file("a/d/f", "x"), file("a/.wh..wh..opq", ""))},
		"ACL follows the mode":         {members(t, xattr(file("file", "x"), aclName, acl), xattr(dir("dir"), aclName, acl)), members(t, dir("dir"))},
		"ACL on a symbolic link":       {members(t, xattr(link(tar.TypeSymlink, "a", "b"), aclName, acl))},
		"ACL that the mode says":       {members(t, xattr(file("file", "x"), aclName, acl[:4]+acl[4:12]+acl[20:28]+acl[36:]))},
		"hard link drops capabilities": {members(t, xattr(file("file", "x"), "security.capability", capability), again)},
		"hard link keeps capabilities": {members(t, xattr(file("file", "x"), "security.capability", capability),
			xattr(again, "security.capability", capability))},
	} {
		t.Run(name, func(t *testing.T) { sameAsContainerd(t, layers...) })
	}
}

func randomLayers(t *testing.T, seed uint64) {
	t.Helper()
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
	oracle := t.TempDir()
	fsys := newFS(t)
	begun := time.Now()
	for n := range 1 + g.IntN(4) {
		entries := g.layer()
		r := tarOf(t, entries)
		_, want := archive.Apply(t.Context(), oracle, bytes.NewReader(r))
		got := build.Apply(t.Context(), fsys, bytes.NewReader(r))
		if want != nil {
			return // it also fails where it cannot find a directory again to set its time
		}
		if got != nil {
			t.Fatalf("seed %d, layer %d: containerd can unpack it: %v\n%s", seed, n, got, list(entries))
		}
		if diff := differences(t, oracle, fsys, begun, g.stale(entries)); len(diff) > 0 {
			t.Fatalf("seed %d, layer %d: differs from what containerd makes (-) in\n%s\n%s", seed, n, strings.Join(diff, "\n"), list(entries))
		}
	}
}

// differences compares what containerd has made with ours. It takes no notice
// of files that containerd alone gave a later time than the stale ones.
func differences(t *testing.T, oracle string, fsys *ext4.FS, begun time.Time, stale []string) []string {
	t.Helper()
	want, err := e2e.ReadTree(oracle)
	if err != nil {
		t.Fatal(err)
	}
	got := make(fsTree)
	got.read(t, fsys, ".", ext4.RootIno)
	for name, g := range got {
		// containerd may come by it once more, by a link made later.
		if w, ok := want[name]; ok && (g.Mode.IsDir() && strings.HasPrefix(g.MTime, "1970") || slices.Contains(stale, g.MTime)) {
			w.MTime, g.MTime = "", ""
			want[name], got[name] = w, g
		}
	}
	forgetUnpacking(want, got.tree(), begun.UTC().Format("2006-01-02T15:04:05"))
	return want.Diff(got.tree())
}

func newFS(t *testing.T) *ext4.FS {
	t.Helper()
	dev := backendtest.NewMemVolume(64 << 20)
	if err := ext4.Format(t.Context(), dev, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(t.Context(), dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := fsys.Remove(t.Context(), ext4.RootIno, "lost+found"); err != nil {
		t.Fatal(err)
	}
	return fsys
}

// An fsTree is what can be read of an ext4.FS.
type fsTree map[string]e2e.Node

func (f fsTree) tree() e2e.Tree { return e2e.Tree(f) }

func (f fsTree) read(t *testing.T, fsys *ext4.FS, dir string, ino vfs.Ino) {
	t.Helper()
	inodes := make(map[vfs.Ino][]string)
	f.walk(t, fsys, dir, ino, inodes)
	for ino, paths := range inodes {
		n, err := fsys.Stat(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		if int(n.Links) != len(paths) {
			t.Errorf("inode %d at %q counts %d links", ino, paths, n.Links)
		}
		if len(paths) == 1 {
			continue
		}
		slices.Sort(paths)
		for _, p := range paths {
			node := f[p]
			node.Links = strings.Join(paths, ", ")
			f[p] = node
		}
	}
}

func (f fsTree) walk(t *testing.T, fsys *ext4.FS, name string, ino vfs.Ino, inodes map[vfs.Ino][]string) {
	t.Helper()
	node, err := readNode(t.Context(), fsys, ino)
	if err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	f[name] = node
	if !node.Mode.IsDir() {
		inodes[ino] = append(inodes[ino], name)
		return
	}
	for e, err := range fsys.ReadDir(t.Context(), ino) {
		if err != nil {
			t.Fatal(err)
		}
		f.walk(t, fsys, path.Join(name, e.Name), e.Ino, inodes)
	}
}

func readNode(ctx context.Context, fsys *ext4.FS, ino vfs.Ino) (node e2e.Node, err error) {
	n, err := fsys.Stat(ctx, ino)
	if err != nil {
		return node, err
	}
	node = e2e.Node{
		Xattrs: make(map[string]string),
		Mode:   fileMode(n.Mode), UID: n.UID, GID: n.GID,
		MTime: n.Mtime.UTC().Format(e2e.TimeFormat),
	}
	x, err := fsys.Xattrs(ctx, ino)
	for name, value := range x {
		node.Xattrs[name] = string(value)
	}
	if err != nil {
		return node, err
	}
	switch n.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		p := make([]byte, n.Size)
		if k, err := fsys.ReadAt(ctx, ino, p, 0); k < len(p) && !errors.Is(err, io.EOF) {
			return node, err
		}
		node.Size, node.Sum = n.Size, fmt.Sprintf("%x", sha256.Sum256(p))
	case syscall.S_IFLNK:
		node.Target, err = fsys.Readlink(ctx, ino)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		node.Device = fmt.Sprintf("%d:%d", n.Major, n.Minor)
	}
	return node, err
}

func fileMode(mode uint32) fs.FileMode {
	return (&tar.Header{Mode: int64(mode & 0o7777), Typeflag: map[uint32]byte{
		syscall.S_IFREG: tar.TypeReg, syscall.S_IFDIR: tar.TypeDir, syscall.S_IFLNK: tar.TypeSymlink,
		syscall.S_IFCHR: tar.TypeChar, syscall.S_IFBLK: tar.TypeBlock, syscall.S_IFIFO: tar.TypeFifo,
	}[mode&syscall.S_IFMT]}).FileInfo().Mode()
}

// A generator makes entries that are likely to meet.
type generator struct {
	*rand.Rand

	// time is that of all entries of the layer: containerd sets the time of a
	// directory once more at the end, on whatever is at its path by then.
	time    time.Time
	earlier []string // times of the layers before
	links   bool     // there were any, in these or this
}

// layer returns the entries of a layer. Whether containerd keeps a directory
// that no entry names from an opaque one depends on what was at its path
// before, which no image should rely on; so where opaque directories do not
// come first, all directories are named.
func (g *generator) layer() (all []member) {
	if !g.time.IsZero() {
		g.earlier = append(g.earlier, g.time.UTC().Format(e2e.TimeFormat))
	}
	g.time = time.Unix(1e9+g.Int64N(1e6), g.Int64N(1e9))
	var opaque []member
	named := g.IntN(2) == 0
	for range 1 + g.IntN(12) {
		m := g.entry()
		switch {
		case named:
			all = append(all, append(g.parents(m.Name), m)...)
		case path.Base(m.Name) == ".wh..wh..opq":
			opaque = append(opaque, m)
		default:
			all = append(all, m)
		}
	}
	return append(opaque, all...)
}

// parents returns entries of the directories that name lies in.
func (g *generator) parents(name string) (all []member) {
	dir := path.Dir(path.Clean(name))
	if dir == "." || dir == "/" || dir == ".." {
		return nil
	}
	return append(g.parents(dir), member{Header: tar.Header{
		Name: dir, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: g.time, Format: tar.FormatPAX,
	}})
}

// stale returns the times that files of earlier layers have, if containerd may
// have come by one as it set the time of a directory that a link has replaced.
func (g *generator) stale(layer []member) []string {
	g.links = g.links || slices.ContainsFunc(layer, func(m member) bool { return m.Typeflag == tar.TypeSymlink })
	if g.links {
		return g.earlier
	}
	return nil
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// path returns one to three names.
func (g *generator) path() string {
	names := []string{"a", "b", "c", "d"}
	p := pick(g, names...)
	for range g.IntN(3) {
		p += "/" + pick(g, names...)
	}
	return p
}

func (g *generator) entry() member {
	m := member{Header: tar.Header{
		Name: g.path(), Uid: pick(g, 0, 7, 70000), Gid: pick(g, 0, 9), Mode: pick[int64](g, 0o644, 0o755, 0o4711, 0o2750, 0o1777, 0),
		ModTime: g.time, Format: tar.FormatPAX, Typeflag: tar.TypeReg,
	}}
	switch k := g.IntN(20); {
	case k < 6:
		m.body = strings.Repeat(pick(g, "x", "\x00"), pick(g, 0, 1, 5000))
	case k < 10:
		m.Typeflag = tar.TypeDir
		m.Mode &^= 0o2000 // the kernel would hand on the group to parents that no entry names
	case k < 13:
		m.Typeflag, m.Linkname = tar.TypeSymlink, pick(g, "", "/", "../", "../../", "./")+g.path()+pick(g, "", "/")
	case k < 15:
		m.Typeflag, m.Linkname = tar.TypeLink, pick(g, "", "/", "../")+g.path()
	case k < 16:
		m.Name = path.Join(path.Dir(m.Name), ".wh."+path.Base(m.Name))
	case k < 18:
		m.Name = path.Join(path.Dir(m.Name), ".wh..wh..opq")
	default:
		m.Typeflag = pick[byte](g, tar.TypeFifo, tar.TypeChar, tar.TypeBlock)
		m.Devmajor, m.Devminor = pick[int64](g, 1, 300), pick[int64](g, 3, 70000)
		if m.Typeflag == tar.TypeFifo {
			m.Devmajor, m.Devminor = 0, 0
		}
	}
	if g.IntN(4) == 0 {
		name, value := g.xattr()
		m.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
	}
	if g.IntN(8) == 0 {
		m.Name = pick(g, "/", "./", "../", "a/../", "x//") + m.Name
	}
	return m
}

func (g *generator) xattr() (name, value string) {
	if g.IntN(4) == 0 {
		return "security.capability", capability
	}
	if g.IntN(4) == 0 {
		return aclName, acl
	}
	return pick(g, "user.a", "user.b", "trusted.t", "security.s", "odd.x", "system.odd"), pick(g, "v", "longer")
}

// capability is cap_net_raw+ep as the kernel takes it.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00"

const aclName = "system.posix_acl_access"

// acl is u::rw-,u:7:rwx,g::r--,m::rwx,o::--- as the kernel takes it.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" +
	"\x02\x00\x07\x00\x07\x00\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" +
	"\x10\x00\x07\x00\xff\xff\xff\xff" +
	"\x20\x00\x00\x00\xff\xff\xff\xff"

func tarOf(t *testing.T, all []member) []byte {
	t.Helper()
	return archived(t, func(w *tar.Writer) error {
		for _, m := range all {
			m.Size = int64(len(m.body))
			if err := w.WriteHeader(&m.Header); err != nil {
				return err
			}
			if _, err := io.WriteString(w, m.body); err != nil {
				return err
			}
		}
		return nil
	})
}

func list(all []member) string {
	var b strings.Builder
	for _, m := range all {
		fmt.Fprintf(&b, "%c %s", m.Typeflag, m.Name)
		if m.Linkname != "" {
			fmt.Fprintf(&b, " -> %s", m.Linkname)
		}
		fmt.Fprintf(&b, " %o %q\n", m.Mode, m.PAXRecords)
	}
	return b.String()
}
