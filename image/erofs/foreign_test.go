// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// fill makes files of several kinds in the directory dir.
func fill(t testing.TB, dir string, files int) {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"many", "deep/er/and/deeper", "none"} {
		ok(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for i := range files {
		name := filepath.Join(dir, "many", fmt.Sprintf("name %d %s", i, strings.Repeat("ü", i%50)))
		ok(os.WriteFile(name, pattern(i, 1+i*37%9000), 0o640))
		if i%5 == 0 { // many files share attributes
			ok(unix.Lsetxattr(name, "user.shared", pattern(7, 200), 0))
			ok(unix.Lsetxattr(name, "trusted.long.prefix.one", pattern(i, 20), 0))
		}
		if i%40 == 0 {
			ok(os.Link(name, filepath.Join(dir, "deep/er", fmt.Sprint("hard", i))))
			ok(os.Link(name, filepath.Join(dir, fmt.Sprint("hard", i))))
		}
	}
	ok(os.Symlink(strings.Repeat("t", 300), filepath.Join(dir, "slow")))
	ok(os.Symlink(strings.Repeat("t", 4090), filepath.Join(dir, "slower")))
	ok(os.Symlink("fast", filepath.Join(dir, "deep/link")))
	ok(syscall.Mknod(filepath.Join(dir, "device"), syscall.S_IFBLK|0o600, int(unix.Mkdev(300, 70_000))))
	ok(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	ok(unix.Setxattr(filepath.Join(dir, "many"), "system.posix_acl_default", posixACL(), 0))
	ok(os.WriteFile(filepath.Join(dir, "large"), pattern(3, 3<<20+5), 0o600))
	file, err := os.Create(filepath.Join(dir, "pieces"))
	ok(err)
	defer file.Close()
	for i := range 100 {
		_, err := file.WriteAt([]byte{byte(i), 1}, int64(i)*12_288)
		ok(err)
	}
}

// foreign are options of mkfs.erofs.
var foreign = []struct {
	name string
	opts []string
}{
	{"plain", nil},
	{"compact", []string{"-E", "force-inode-compact", "-x", "1"}},
	{"extended", []string{"-E", "force-inode-extended", "-x", "-1"}},
	{"chunks", []string{"--chunksize=8192", "-x", "0"}},
	{"indexes", []string{"--chunksize=4096", "-E", "force-chunk-indexes"}},
	{"no tails", []string{"-E", "noinline_data"}},
	{"old", []string{"-E", "legacy-compress,nosbcrc"}},
}

// makeForeign returns what mkfs.erofs makes of a directory, on a larger device.
func makeForeign(t testing.TB, src string, opts []string) fileVolume {
	t.Helper()
	made := filepath.Join(t.TempDir(), "made")
	args := append(slices.Clone(opts), "-T", "1600000000", made, src)
	if out, err := exec.CommandContext(t.Context(), need.Command(t, "mkfs.erofs"), args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	content := must(os.ReadFile(made))
	v := newFile(t, int64(len(content))+64<<20)
	must(v.WriteAt(t.Context(), content, 0))
	return v
}

// TestEditForeign reads what mkfs.erofs made, edits it in ways that make files
// outgrow their places, and shows it to the kernel.
func TestEditForeign(t *testing.T) {
	need.Root(t)
	src := t.TempDir()
	fill(t, src, 600/slow)
	for _, base := range foreign {
		t.Run(base.name, func(t *testing.T) {
			v := makeForeign(t, src, base.opts)
			before := describeVolume(t, v)
			if err := sameLines(before, mustDescribe(t, mount(t, v))); err != nil {
				t.Fatal(err)
			}
			editAll(t, open(t, v))
			checkEdited(t, v, before)
		})
	}
}

// TestEditGolden edits the reference's turbo layer in another over it.
func TestEditGolden(t *testing.T) {
	lower, _ := golden(t)
	var w bytes.Buffer
	b := must(lsmt.Build(&w, must(lsmt.Merge([]*lsmt.Layer{lower})), lsmt.BuilderOptions{}))
	defer b.Close()
	editAll(t, open(t, b))
	if err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	lower, _ = golden(t)
	before := describeVolume(t, must(lsmt.Merge([]*lsmt.Layer{lower})))
	upper := must(lsmt.Open(t.Context(), memBlob(w.Bytes())))
	v := copyDisk(t, must(lsmt.Merge([]*lsmt.Layer{lower, upper})), 64<<20)
	checkEdited(t, v, before)
}

// checkEdited compares what a Reader and what the kernel sees on v, and the
// contents of files with those before.
func checkEdited(t testing.TB, v fileVolume, before []string) {
	t.Helper()
	after := describeVolume(t, v)
	if err := sameLines(after, mustDescribe(t, mount(t, v))); err != nil {
		t.Error(err)
	}
	fsck(t, v)
	was := map[string]string{}
	for _, l := range before {
		was[nameOf(l)] = text.FindString(l)
	}
	same := 0
	for _, l := range after {
		old, ok := was[nameOf(l)]
		if got := text.FindString(l); ok && got != old {
			t.Errorf("%s has %s, had %s", nameOf(l), got, old)
		} else if old != "" {
			same++
		}
	}
	if same < 3 {
		t.Errorf("%d files are as they were, want more", same)
	}
}

// text matches what stands for the content of a file.
var text = regexp.MustCompile(` size [0-9]+ (-> )?[^ ]+`)

// nameOf returns the name in a line.
func nameOf(line string) string { return strings.SplitAfter(line, `" `)[0] }

func mustDescribe(t testing.TB, dir string) []string {
	t.Helper()
	lines := must(describeDir(dir, "/"))
	slices.Sort(lines)
	return lines
}

// describeVolume lists what a Reader sees on v, sorted.
func describeVolume(t testing.TB, v backend.Volume) []string {
	t.Helper()
	r := must(erofs.NewReader(t.Context(), v))
	lines := must(describeFS(t.Context(), r, r.Root(), "/"))
	slices.Sort(lines)
	return lines
}

// editAll changes something of nearly every file of f, and checks that what it
// has written is what it has made.
func editAll(t testing.TB, f *erofs.FS) {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	i := 0
	var edit func(dir vfs.Ino, name string)
	edit = func(dir vfs.Ino, name string) {
		for e, err := range f.ReadDir(ctx, dir) {
			ok(err)
			st := must(f.Stat(ctx, e.Ino))
			if e.Type == vfs.TypeDirectory {
				edit(e.Ino, path.Join(name, e.Name))
			}
			switch i++; i % 6 {
			case 0:
				st.Mtime = st.Mtime.Add(time.Nanosecond)
				ok(f.SetAttr(ctx, e.Ino, st.Attr))
			case 1:
				m := must(f.Xattrs(ctx, e.Ino))
				m["trusted.more"] = pattern(i, i%400)
				ok(f.SetXattrs(ctx, e.Ino, m))
			case 2:
				ok(f.SetXattrs(ctx, e.Ino, nil))
			case 3:
				if e.Type == vfs.TypeRegular {
					ok(f.Remove(ctx, dir, e.Name))
				}
			case 4:
				if e.Type != vfs.TypeDirectory {
					ok(f.Link(ctx, f.Root(), fmt.Sprint("new link ", i), e.Ino))
				}
			}
		}
	}
	edit(f.Root(), "/")
	deep := must(f.Create(ctx, f.Root(), "added", attr(syscall.S_IFDIR)))
	for k := range 50 {
		w := must(f.Writer(ctx, must(f.Create(ctx, deep, fmt.Sprint(k), attr(syscall.S_IFREG))), 0))
		must(w.Write(pattern(k, k*500)))
		ok(w.Close())
	}
	before := must(describeFS(ctx, f, f.Root(), "/"))
	flush(t, f)
	ok(sameLines(must(describeFS(ctx, f, f.Root(), "/")), before))
}
