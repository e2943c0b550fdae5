// SPDX-License-Identifier: Apache-2.0

package blockmount_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func TestParseFS(t *testing.T) {
	defaults, err := blockmount.ParseFS("ext4")
	if err != nil || len(defaults.Mkfs) == 0 || len(defaults.Mount) == 0 {
		t.Fatalf("got defaults %+v, %v", defaults, err)
	}
	for _, tc := range []struct {
		text string
		want blockmount.FS
	}{
		{"ext4;", blockmount.FS{Type: "ext4", Mkfs: defaults.Mkfs}},
		{"ext4;;", blockmount.FS{Type: "ext4"}},
		{"ext4;;-O none", blockmount.FS{Type: "ext4", Mkfs: []string{"-O", "none"}}},
		{"ext4;noatime,discard", blockmount.FS{Type: "ext4", Mount: []string{"noatime", "discard"}, Mkfs: defaults.Mkfs}},
		{"ext4;noatime;", blockmount.FS{Type: "ext4", Mount: []string{"noatime"}}},
		{"ext4;noatime;-q", blockmount.FS{Type: "ext4", Mount: []string{"noatime"}, Mkfs: []string{"-q"}}},
	} {
		got, err := blockmount.ParseFS(tc.text)
		if err != nil {
			t.Errorf("%q: %v", tc.text, err)
		}
		if len(got.Mount)+len(got.Mkfs)+len(tc.want.Mount)+len(tc.want.Mkfs) > 0 {
			if d := cmp.Diff(tc.want, got, cmp.Transformer("len", func(s []string) string { return strings.Join(s, " ") })); d != "" {
				t.Errorf("%q (-want +got):\n%s", tc.text, d)
			}
		}
	}
	for _, bad := range []string{"", "proc", "../ext4", "ext4;a;b;c", "ext4;\x00", "ext4;errors=panic", "xfs;wsync", "ext4;" + strings.Repeat("a", 4096)} {
		if fs, err := blockmount.ParseFS(bad); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, fs)
		}
	}
}

func FuzzParseFS(f *testing.F) {
	for _, s := range []string{"ext4", "xfs;nouuid;-f", "erofs;;", ";;;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if fs, err := blockmount.ParseFS(s); err == nil && fs.Type != strings.Split(s, ";")[0] {
			t.Fatalf("%q gave type %q", s, fs.Type)
		}
	})
}

func FuzzDetect(f *testing.F) {
	for off, magic := range map[int]string{0: "XFSB", 1080: "\x53\xef", 1024: "\xe2\xe1\xf5\xe0", 65600: "_BHRfS_M"} {
		f.Add(append(make([]byte, off), magic...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "dev")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := blockmount.Detect(path); err != nil {
			t.Fatal(err)
		}
	})
}

// makeImage returns a file of 16 MiB with an ext4 holding the one file
// "hello".
func makeImage(t *testing.T, mkfsArgs ...string) string {
	t.Helper()
	path, src := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "hello"), []byte("world"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-q", "-F", "-d", src}, mkfsArgs...)
	run(t, need.Command(t, "mkfs.ext4"), append(args, path, "16M")...)
	return path
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// assertHello mounts dev, expects the file, unmounts, and expects no loop
// device to be left.
func assertHello(t *testing.T, dev blockmount.Device, hint blockmount.FS, writable bool) {
	t.Helper()
	target := t.TempDir()
	if err := blockmount.Mount(dev, target, hint, writable); err != nil {
		t.Fatal(err)
	}
	if ok, err := blockmount.Mounted(target); !ok || err != nil {
		t.Errorf("mounted: got %v, %v", ok, err)
	}
	if got, err := os.ReadFile(filepath.Join(target, "hello")); string(got) != "world" {
		t.Errorf("got %q, %v", got, err)
	}
	err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644)
	if writable != (err == nil) {
		t.Errorf("write to a mount with writable=%v: %v", writable, err)
	}
	if err := blockmount.Unmount(target); err != nil {
		t.Fatal(err)
	}
	if ok, err := blockmount.Mounted(target); ok || err != nil {
		t.Errorf("unmounted: got %v, %v", ok, err)
	}
	assertNoLoop(t, dev.Path)
}

// assertNoLoop waits for the loop devices of path to go: other programs, as
// they list loop devices, may have one open for a moment.
func assertNoLoop(t *testing.T, path string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		f := loopOf(path)
		if f == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("%s still serves %s", f, path)
			return
		}
	}
}

// loopOf returns a file that says that a loop device serves path, or "".
func loopOf(path string) string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is sound
	for _, f := range files {
		if text, _ := os.ReadFile(f); strings.TrimSpace(string(text)) == path {
			return f
		}
	}
	return ""
}

func TestMountExt4(t *testing.T) {
	need.Loop(t)
	for _, tc := range []struct {
		name     string
		mkfs     []string
		writable bool
	}{
		{"read-only", []string{"-O", "^has_journal"}, false},
		{"read-only with journal", nil, false},
		{"writable", nil, true},
		{"asks for a panic", []string{"-e", "panic"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs, err := blockmount.ParseFS("ext4")
			if err != nil {
				t.Fatal(err)
			}
			assertHello(t, blockmount.Device{Path: makeImage(t, tc.mkfs...), File: true}, fs, tc.writable)
		})
	}
}

// TestErrorsNeverPanic: the superblock's wish to panic the host is overruled.
func TestErrorsNeverPanic(t *testing.T) {
	need.Loop(t)
	dev := blockmount.Device{Path: makeImage(t, "-e", "panic"), File: true}
	target := t.TempDir()
	if err := blockmount.Mount(dev, target, blockmount.FS{}, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = blockmount.Unmount(target) })
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, target) && strings.Contains(line, "errors=panic") {
			t.Errorf("mounted as %s", line)
		}
	}
}

func TestWrongLabel(t *testing.T) {
	need.Loop(t)
	fs, err := blockmount.ParseFS("xfs;nouuid")
	if err != nil {
		t.Fatal(err)
	}
	assertHello(t, blockmount.Device{Path: makeImage(t), File: true}, fs, false)
}

func TestRefuses(t *testing.T) {
	need.Loop(t)
	dirty := makeImage(t)
	f, err := os.OpenFile(dirty, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var word [4]byte // s_feature_incompat
	if _, err := f.ReadAt(word[:], 1024+0x60); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(word[:], binary.LittleEndian.Uint32(word[:])|4)
	if _, err := f.WriteAt(word[:], 1024+0x60); err != nil {
		t.Fatal(err)
	}
	f.Close()
	zeros := filepath.Join(t.TempDir(), "zeros")
	if err := os.WriteFile(zeros, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, path, hint, want string }{
		{"dirty journal", dirty, "ext4", blockmount.ErrDirty.Error()},
		{"nothing on it", zeros, "ext4", "no known file system"},
		{"missing", zeros + "x", "ext4", "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs, err := blockmount.ParseFS(tc.hint)
			if err != nil {
				t.Fatal(err)
			}
			target := t.TempDir()
			err = blockmount.Mount(blockmount.Device{Path: tc.path, File: true}, target, fs, false)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
				t.Errorf("got %v, want an error with %q and the path", err, tc.want)
			}
			if ok, _ := blockmount.Mounted(target); ok {
				t.Error("it is mounted")
			}
			assertNoLoop(t, tc.path)
		})
	}
}

func TestMountEROFSWithoutLoop(t *testing.T) {
	need.Root(t)
	path, src := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "hello"), []byte("world"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, need.Command(t, "mkfs.erofs"), path, src)
	assertHello(t, blockmount.Device{Path: path, File: true}, blockmount.FS{}, false)
}

func TestMake(t *testing.T) {
	need.Loop(t)
	for _, name := range []string{"ext4", "xfs"} {
		t.Run(name, func(t *testing.T) {
			need.Command(t, "mkfs."+name)
			path := filepath.Join(t.TempDir(), "dev")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 512<<20); err != nil {
				t.Fatal(err)
			}
			fs, err := blockmount.ParseFS(name)
			if err != nil {
				t.Fatal(err)
			}
			dev := blockmount.Device{Path: path, File: true}
			if err := blockmount.Make(t.Context(), dev, fs); err != nil {
				t.Fatal(err)
			}
			target := t.TempDir()
			if err := blockmount.Mount(dev, target, fs, true); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(target, "hello"), []byte("world"), 0o644); err != nil {
				t.Error(err)
			}
			if err := blockmount.Unmount(target); err != nil {
				t.Fatal(err)
			}
			assertHello(t, dev, fs, false)
		})
	}
}

// TestLoopRace has many callers fight for free loop devices.
func TestLoopRace(t *testing.T) {
	need.Loop(t)
	image, err := os.ReadFile(makeImage(t))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, bytes.Clone(image), 0o600); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for range 5 {
				assertHello(t, blockmount.Device{Path: path, File: true}, blockmount.FS{}, false)
			}
		})
	}
	wg.Wait()
}

func TestUnmountBusy(t *testing.T) {
	need.Loop(t)
	path, target := makeImage(t), t.TempDir()
	if err := blockmount.Mount(blockmount.Device{Path: path, File: true}, target, blockmount.FS{}, false); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(target, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	if err := blockmount.Unmount(target); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v, want EBUSY", err)
	}
	if err := blockmount.Abandon(target); err != nil {
		t.Error(err)
	}
	if ok, err := blockmount.Mounted(target); ok || err != nil {
		t.Errorf("abandoned, it is mounted: %v, %v", ok, err)
	}
	f.Close()
	assertNoLoop(t, path)
}

func TestAttachLoop(t *testing.T) {
	need.Loop(t)
	path := makeImage(t)
	node, err := blockmount.AttachLoop(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := blockmount.AttachLoop(path)
	if err != nil || again != node {
		t.Errorf("second: got %s, %v; want %s", again, err, node)
	}
	if fs, err := blockmount.Detect(node); fs != "ext4" || err != nil {
		t.Errorf("detect: got %q, %v", fs, err)
	}
	for range 2 { // the second finds nothing
		if err := blockmount.DetachLoop(path); err != nil {
			t.Error(err)
		}
	}
	assertNoLoop(t, path)
}

// TestDirectIO: an image is read past the page cache of the FUSE file that it
// is, a writable file system is not written so.
func TestDirectIO(t *testing.T) {
	need.FUSE(t)
	need.Loop(t)
	e, err := fuse.New(fuse.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(makeImage(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		writable bool
		want     string
	}{
		{"read-only", false, "1"},
		{"writable", true, "0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var v backend.Volume = volumeOf(t, image)
			if !tc.writable {
				v = backendtest.ReadOnly(v)
			}
			d, err := e.Export(t.Context(), tc.want, v)
			if err != nil {
				t.Fatal(err)
			}
			target := t.TempDir()
			if err := blockmount.Mount(blockmount.Device{Path: d.Path(), File: true}, target, blockmount.FS{}, tc.writable); err != nil {
				t.Fatal(err)
			}
			if got := readFile(t, loopFile(t, d.Path(), "loop/dio")); got != tc.want {
				t.Errorf("direct I/O of its loop device: got %s, want %s", got, tc.want)
			}
			if err := errors.Join(blockmount.Unmount(target), d.Remove(t.Context())); err != nil {
				t.Error(err)
			}
		})
	}
}

func volumeOf(t *testing.T, content []byte) backend.Writer {
	t.Helper()
	v := backendtest.NewMemVolume(int64(len(content)))
	if _, err := v.WriteAt(t.Context(), content, 0); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestQueue: what one user of a loop device has changed is not the next one's,
// who most likely gets the same number.
func TestQueue(t *testing.T) {
	need.Loop(t)
	dev, target := blockmount.Device{Path: makeImage(t), File: true}, t.TempDir()
	for range 2 {
		if err := blockmount.Mount(dev, target, blockmount.FS{}, false); err != nil {
			t.Fatal(err)
		}
		for _, set := range []struct{ name, want, other string }{{"read_ahead_kb", "128", "8192"}, {"rq_affinity", "2", "1"}} {
			attr := loopFile(t, dev.Path, "queue/"+set.name)
			if got := readFile(t, attr); got != set.want {
				t.Errorf("%s: got %s, want %s", set.name, got, set.want)
			}
			if err := os.WriteFile(attr, []byte(set.other), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := blockmount.Unmount(target); err != nil {
			t.Fatal(err)
		}
	}
	assertNoLoop(t, dev.Path)
}

// loopFile returns where the kernel says something of the loop device that
// serves path.
func loopFile(t *testing.T, path, name string) string {
	t.Helper()
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if text, _ := os.ReadFile(f); strings.TrimSpace(string(text)) == path {
			return filepath.Join(filepath.Dir(filepath.Dir(f)), name)
		}
	}
	t.Fatalf("no loop device serves %s", path)
	return ""
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestMountOfALiveFile: a mount that is out of sight and in use is found again,
// instead of a second file system on the same bytes.
func TestMountOfALiveFile(t *testing.T) {
	need.Loop(t)
	dev, first, second := blockmount.Device{Path: makeImage(t), File: true}, t.TempDir(), t.TempDir()
	if err := blockmount.Mount(dev, first, blockmount.FS{}, true); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(first, "new"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(blockmount.Abandon(first), blockmount.Mount(dev, second, blockmount.FS{}, true)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(second, "new")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(f.Close(), blockmount.Unmount(second)); err != nil {
		t.Error(err)
	}
	assertNoLoop(t, dev.Path)
}
