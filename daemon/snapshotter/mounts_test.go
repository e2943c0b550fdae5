// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A root is what a user sees of the root directory of a container.
type root struct {
	mode     uint32
	uid, gid uint32
	mtime    int64
}

var imageRoot = root{mode: unix.S_IFDIR | 0o751, uid: 1234, gid: 2345, mtime: 1e9}

func rootOf(t *testing.T, dir string) root {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return root{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim.Sec}
}

// setRoot gives the root directory of the file system image at path what
// imageRoot says.
func setRoot(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All([]mount.Mount{{Type: "ext4", Source: path, Options: []string{"loop"}}}, dir); err != nil {
		t.Fatal(err)
	}
	when := time.Unix(imageRoot.mtime, 0)
	err := errors.Join(os.Chown(dir, int(imageRoot.uid), int(imageRoot.gid)), unix.Chmod(dir, imageRoot.mode&0o7777), os.Chtimes(dir, when, when))
	if err := errors.Join(err, mount.UnmountAll(dir, 0)); err != nil {
		t.Fatal(err)
	}
}

// TestRootfs mounts what a container on an image gets: the image's files, and
// as its root directory the image's, not the snapshot's.
func TestRootfs(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f)
	layer := f.addLayer(t, "app")
	setRoot(t, f.layers[layer])
	r.pull("sha256:root", "", layer)
	for _, tc := range []struct {
		name string
		make func(t *testing.T) []mount.Mount
	}{
		{"container", func(*testing.T) []mount.Mount { return r.prepare("c", "sha256:root") }},
		{"container asked again", func(*testing.T) []mount.Mount { return r.mounts("c") }},
		{"view", func(t *testing.T) []mount.Mount {
			mounts, err := r.View(t.Context(), "v", "sha256:root")
			if err != nil {
				t.Fatal(err)
			}
			return mounts
		}},
		{"container on a plain layer on the image", func(*testing.T) []mount.Mount {
			r.prepare("plain", "sha256:root")
			r.commit("plain-1", "plain")
			return r.prepare("c2", "plain-1")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mounts := tc.make(t)
			r.in(mounts, func(dir string) {
				if got := rootOf(t, dir); got != imageRoot {
					t.Errorf("root directory: got %+v, want %+v", got, imageRoot)
				}
			})
			r.wantFile(mounts, "name", "app")
		})
	}
}

// TestRootfsKeepsWhatTheContainerChanged: once mounted, the root directory is
// the container's.
func TestRootfsKeepsWhatTheContainerChanged(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f)
	r.in(r.prepare("c", r.image(f, "app")), func(dir string) {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Error(err)
		}
	})
	r.restart()
	r.in(r.mounts("c"), func(dir string) {
		if got := rootOf(t, dir).mode & 0o7777; got != 0o700 {
			t.Errorf("mode of the root directory: got %o, want 700", got)
		}
	})
}

// TestContainersShareTheirImage: ten containers, one device, one mount, and
// none sees another's files.
func TestContainersShareTheirImage(t *testing.T) {
	b := newReal(t)
	r := newRig(t, b, b.plainHTTP)
	ref := b.image(r, "app")
	for _, key := range strings.Split("0123456789", "") {
		mounts := r.prepare(key, ref)
		r.wantFile(mounts, "name", "app")
		r.writeFile(mounts, "mine", key)
	}
	r.wantMounted("1")
	if list, err := b.Attachments(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("got devices %+v, %v; want one", list, err)
	}
	for _, key := range strings.Split("0123456789", "") {
		r.wantFile(r.mounts(key), "mine", key)
	}
}

// TestViewIsReadOnly: of an image, and of a container's own device too.
func TestViewIsReadOnly(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f, func(o *snapshotter.Options) { o.RWMode = snapshotter.ModeDir })
	mounts, err := r.View(t.Context(), "v", r.image(f, "app"))
	if err != nil {
		t.Fatal(err)
	}
	r.wantFile(mounts, "name", "app")
	r.in(mounts, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a view: %v, want EROFS", err)
		}
	})
}

// writers are the ways to have a device of one's own.
var writers = []struct {
	name   string
	option snapshotter.Mode
	label  string
}{
	{"by label", "", "dir"},
	{"by option", snapshotter.ModeDir, ""},
}

// eachBlock runs test on the real block daemon, and on the fake one with files
// and with block special files, at once.
func eachBlock(t *testing.T, test func(t *testing.T, r *rig, image func(name string) string), change ...func(*snapshotter.Options)) {
	t.Helper()
	t.Run("fake", func(t *testing.T) {
		t.Parallel()
		need.Loop(t)
		f := newFake(t)
		r := newRig(t, f, change...)
		test(t, r, func(name string) string { return r.image(f, name) })
	})
	t.Run("node", func(t *testing.T) {
		t.Parallel()
		n := newNode(t)
		r := newRig(t, n, change...)
		test(t, r, func(name string) string { return r.image(n.fakeBlock, name) })
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		b := newReal(t)
		r := newRig(t, b, append(change, b.plainHTTP)...)
		test(t, r, func(name string) string { return b.image(r, name) })
	})
}

// TestDeviceOfItsOwn writes to a container's device, commits it, and builds on
// what was committed.
func TestDeviceOfItsOwn(t *testing.T) {
	for _, w := range writers {
		t.Run(w.name, func(t *testing.T) {
			eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
				r.writeFile(r.prepare("c", image("app"), snapshotter.LabelWritable, w.label), "new", "1")
				r.wantFile(r.mounts("c"), "name", "app")
				r.commit("layer", "c")
				r.wantSealed("layer")
				r.wantMounted()

				r.wantFile(r.prepare("over", "layer", snapshotter.LabelWritable, "overlayfs"), "new", "1")
				second := r.prepare("second", "layer", snapshotter.LabelWritable, "dir")
				r.wantFile(second, "name", "app")
				r.writeFile(second, "new", "2")
				r.commit("layer2", "second")
				r.wantFile(r.prepare("top", "layer2", snapshotter.LabelWritable, "overlayfs"), "new", "2")
				r.wantFile(r.mounts("over"), "new", "1")
			}, func(o *snapshotter.Options) { o.RWMode = w.option })
		})
	}
}

// wantSealed expects the committed snapshot name to tell where its layer is.
func (r *rig) wantSealed(name string) {
	r.t.Helper()
	info, err := r.Stat(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	path := info.Labels[snapshotter.LabelLocalCommitPath]
	if _, err := os.Stat(path); err != nil || filepath.Base(path) != "overlaybd.sealed" {
		r.t.Errorf("layer of %s: got path %q, %v", name, path, err)
	}
	if mode, ok := info.Labels[snapshotter.LabelWritable]; ok {
		r.t.Errorf("%s is committed, and labelled writable (%s)", name, mode)
	}
}

// TestDeviceFromNothing has the first layer of an image made in a container.
func TestDeviceFromNothing(t *testing.T) {
	eachBlock(t, func(_ *testing.T, r *rig, _ func(string) string) {
		r.writeFile(r.prepare("c", "", snapshotter.LabelWritable, "dir", snapshotter.LabelVSize, "1"), "new", "1")
		r.restart()
		r.wantFile(r.mounts("c"), "new", "1") // not formatted again
		r.commit("layer", "c")
		r.wantSealed("layer")
		r.wantFile(r.prepare("top", "layer"), "new", "1")
	})
}

// TestDeviceNode hands out a device for somebody else to mount.
func TestDeviceNode(t *testing.T) {
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		mounts := r.prepare("c", image("app"), snapshotter.LabelWritable, "dev")
		if len(mounts) != 1 || mounts[0].Type != "ext4" || !strings.HasPrefix(mounts[0].Source, "/dev/loop") {
			t.Fatalf("got mounts %+v", mounts)
		}
		r.wantFile(mounts, "name", "app")
		r.writeFile(mounts, "new", "1")
		r.commit("layer", "c")
		r.wantSealed("layer")
		r.wantFile(r.prepare("top", "layer"), "new", "1")
	})
}

// TestOverlayIsNotSealed: by default a container's files are a directory, which
// commits as one.
func TestOverlayIsNotSealed(t *testing.T) {
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		r.writeFile(r.prepare("c", image("app")), "new", "1")
		r.commit("layer", "c")
		info, err := r.Stat(t.Context(), "layer")
		if err != nil || info.Labels[snapshotter.LabelLocalCommitPath] != "" {
			t.Errorf("got %+v, %v; want no layer file", info, err)
		}
		top := r.prepare("top", "layer")
		r.wantFile(top, "new", "1")
		r.wantFile(top, "name", "app")
	})
}

// TestCommitOfARunningContainer is refused, harms nothing, and works later: the
// file system that the container has is never mounted a second time, beside it.
func TestCommitOfARunningContainer(t *testing.T) {
	t.Parallel() // it waits
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		dir := r.run(r.prepare("c", image("app"), snapshotter.LabelWritable, "dir"))
		if err := r.Commit(t.Context(), "layer", "c"); !errdefs.IsFailedPrecondition(err) {
			t.Fatalf("commit of a running container: %v, want a failed precondition", err)
		}
		if err := os.WriteFile(filepath.Join(dir, "new"), []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
		again := r.run(r.mounts("c"))
		if got, err := os.ReadFile(filepath.Join(again, "new")); string(got) != "1" {
			t.Errorf("mounted again: got %q, %v; want what the container wrote", got, err)
		}
		r.unmount(dir)
		r.unmount(again)
		r.commit("layer", "c")
		r.wantFile(r.prepare("top", "layer"), "new", "1")
	})
}

// TestBadModes: what labels say about writing is checked.
func TestBadModes(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f)
	ref := r.image(f, "app")
	for _, labels := range [][]string{
		{snapshotter.LabelWritable, "yes"},
		{snapshotter.LabelWritable, "dir", snapshotter.LabelVSize, "-1"},
		{snapshotter.LabelWritable, "dir", snapshotter.LabelVSize, "1e3"},
	} {
		parent := ""
		if len(labels) == 2 {
			parent = ref
		}
		if _, err := r.Prepare(t.Context(), "c", parent, withLabels(labels)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v, want an invalid argument", labels, err)
		}
	}
	_ = r.Walk(t.Context(), func(_ context.Context, i snapshots.Info) error {
		if i.Name != ref {
			t.Errorf("left behind: %+v", i)
		}
		return nil
	})
}
