// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// fill makes files of several kinds in the mounted directory dir.
func fill(t testing.TB, dir string) {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"many", "deep/er/and/deeper"} {
		ok(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for i := range 1500 {
		name := filepath.Join(dir, "many", fmt.Sprintf("name %d %s", i, strings.Repeat("ü", i%50)))
		ok(os.WriteFile(name, pattern(i, i%5000), 0o640))
		if i%50 == 0 { // many files share an attribute block
			ok(unix.Setxattr(name, "user.shared", pattern(7, 900), 0))
		}
	}
	ok(os.Symlink(strings.Repeat("t", 300), filepath.Join(dir, "slow")))
	ok(os.Symlink("fast", filepath.Join(dir, "deep/link")))
	ok(os.Link(filepath.Join(dir, "slow"), filepath.Join(dir, "deep/er/hard")))
	ok(syscall.Mknod(filepath.Join(dir, "device"), syscall.S_IFBLK|0o600, int(unix.Mkdev(300, 70_000))))
	ok(unix.Setxattr(filepath.Join(dir, "many"), "system.posix_acl_default", posixACL(), 0))
	file, err := os.Create(filepath.Join(dir, "pieces"))
	ok(err)
	defer file.Close()
	for i := range 2000 {
		_, err := file.WriteAt([]byte{byte(i), 1}, int64(i)*12_288)
		ok(err)
	}
	ok(syscall.Fallocate(int(file.Fd()), 0, 2001*12_288, 1<<20)) // not written
}

// halve removes every second name below dir that can be, and writes to the
// files that stay.
func halve(t testing.TB, f *ext4.FS, dir vfs.Ino) {
	t.Helper()
	i := 0
	for e, err := range f.ReadDir(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		i++
		switch {
		case e.Type == vfs.TypeDirectory:
			halve(t, f, e.Ino)
		case i%2 == 0:
			if err := f.Remove(t.Context(), dir, e.Name); err != nil {
				t.Fatal(err)
			}
		case e.Type == vfs.TypeRegular:
			setContent(t, f, e.Ino, pattern(i, 3*i))
		}
	}
	for i := range 200 {
		writeFile(t, f, dir, fmt.Sprintf("added %d", i), pattern(i, 100*i))
	}
}

// TestEditWhatTheKernelWrote reads what the kernel wrote, edits it, and shows
// it to the kernel again.
func TestEditWhatTheKernelWrote(t *testing.T) {
	for _, base := range bases[1:] {
		t.Run(base.name, func(t *testing.T) {
			v := newFile(t, 128<<20)
			makeBase(t, v, base.opts)
			dir, unmount := mountAs(t, v, "rw,noatime")
			fill(t, dir)
			want := mustDescribe(t, dir)
			unmount()

			f := open(t, v)
			got := must(describeFS(t.Context(), f, ext4.RootIno, "/"))
			slices.Sort(got)
			if err := sameLines(got, want); err != nil {
				t.Fatal(err)
			}
			halve(t, f, ext4.RootIno)
			want = must(describeFS(t.Context(), f, ext4.RootIno, "/"))
			slices.Sort(want)
			flush(t, f)
			fsck(t, v)

			dir, unmount = mountAs(t, v, "rw,noatime")
			if err := sameLines(mustDescribe(t, dir), want); err != nil {
				t.Error(err)
			}
			fill(t, filepath.Join(dir, "deep"))
			unmount()
			fsck(t, v)
		})
	}
}

func mustDescribe(t testing.TB, dir string) []string {
	t.Helper()
	lines := must(describeDir(dir, "/"))
	slices.Sort(lines)
	return lines
}

// TestKernelWritesToOurs lets the kernel go on in what Format made.
func TestKernelWritesToOurs(t *testing.T) {
	v := newFile(t, 128<<20)
	p := must(newPair(t.Context(), format(t, v)))
	everything(t, p)
	flush(t, p.fs)
	dir, unmount := mountAs(t, v, "rw,noatime")
	fill(t, filepath.Join(dir, "d"))
	if out, err := exec.CommandContext(t.Context(), "rm", "-r", filepath.Join(dir, "d/e"), filepath.Join(dir, "file")).CombinedOutput(); err != nil {
		t.Fatalf("rm: %v\n%s", err, out)
	}
	unmount()
	fsck(t, v)
	must(describeFS(t.Context(), open(t, v), ext4.RootIno, "/"))
}
