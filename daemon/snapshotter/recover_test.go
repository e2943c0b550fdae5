// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestSnapshotterRestarts under a container, which does not notice.
func TestSnapshotterRestarts(t *testing.T) {
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		ref := image("app")
		dir := r.run(r.prepare("c", ref))
		own := r.run(r.prepare("own", ref, snapshotter.LabelWritable, "dir"))
		r.restart()
		r.wantRead(filepath.Join(dir, "name"), "app")
		if err := os.WriteFile(filepath.Join(own, "new"), []byte("1"), 0o600); err != nil {
			t.Error(err)
		}
		r.wantFile(r.mounts("own"), "new", "1")
		r.wantMounted("1", "3")
		r.unmount(dir)
		r.unmount(own)
	})
}

// reboot has the kernel forget: no mount is left, and no device.
func (r *rig) reboot(forget func()) {
	r.t.Helper()
	r.stop()
	for _, m := range mountsBelow(r.opts.Root) {
		if err := unix.Unmount(m, 0); err != nil {
			r.t.Errorf("unmount %s: %v", m, err)
		}
	}
	forget()
	r.start()
}

// TestReboot: what containers need is attached before anyone asks; an image
// that none is on is not.
func TestReboot(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f)
	used, idle := r.image(f, "used"), r.image(f, "idle")
	r.writeFile(r.prepare("c", used), "new", "1")
	r.writeFile(r.prepare("own", used, snapshotter.LabelWritable, "dir"), "new", "2")
	r.wantFile(r.prepare("gone", idle), "name", "idle")
	r.remove("gone")

	attached := make(chan string, 8)
	r.reboot(func() {
		f.lose()
		f.hook = func(_ context.Context, call, id string) error {
			if call == "attach" {
				attached <- id
			}
			return nil
		}
	})
	got := []string{<-attached, <-attached}
	slices.Sort(got)
	if want := []string{"1", "4"}; !slices.Equal(got, want) {
		t.Errorf("attached at the start: %v, want %v", got, want)
	}
	c := r.mounts("c")
	r.wantFile(c, "name", "used")
	r.wantFile(c, "new", "1")
	r.wantFile(r.mounts("own"), "new", "2")
	r.wantMounted("1", "4")
	r.wantFile(r.prepare("again", idle), "name", "idle")
}

// TestRebootWithoutRegistry: while the image cannot be had the snapshotter
// serves everything else, and Mounts says why; afterwards it works.
func TestRebootWithoutRegistry(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	r := newRig(t, f)
	r.wantFile(r.prepare("c", r.image(f, "app")), "name", "app")
	away := errors.New("registry is away")
	fail := away
	r.reboot(func() {
		f.lose()
		f.hook = func(_ context.Context, call, _ string) error {
			if call == "attach" {
				return fail
			}
			return nil
		}
	})
	if _, err := r.Mounts(t.Context(), "c"); !errors.Is(err, away) {
		t.Errorf("got %v, want the block daemon's reason", err)
	}
	r.prepare("plain", "")
	r.restart() // its background work, which reads the hook, has ended
	r.stop()
	fail = nil
	r.start()
	r.wantFile(r.mounts("c"), "name", "app")
}

// TestBlockDaemonKilled: its devices are dead, under containers too. Those must
// be started anew, which works.
func TestBlockDaemonKilled(t *testing.T) {
	b := newReal(t)
	r := newRig(t, b, b.plainHTTP)
	ref := b.image(r, "app")
	dir := r.run(r.prepare("c", ref))
	r.wantRead(filepath.Join(dir, "name"), "app")
	own := r.prepare("own", ref, snapshotter.LabelWritable, "dir")
	r.writeFile(own, "new", "1")
	r.in(own, func(dir string) { syncFS(t, dir) })
	b.kill()
	b.start()
	r.wantFile(r.mounts("c"), "name", "app")
	r.wantFile(r.mounts("own"), "new", "1")
	r.wantFile(r.prepare("next", ref), "name", "app")
	r.unmount(dir)
	r.wantMounted("1", "3")
}

func syncFS(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		t.Error(err)
	}
}

// TestDeviceFails while the daemon lives: the next to ask has it replaced.
func TestDeviceFails(t *testing.T) {
	b := newReal(t)
	r := newRig(t, b, b.plainHTTP)
	ref := b.image(r, "app")
	r.wantFile(r.prepare("c", ref), "name", "app")
	list, err := b.Attachments(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("got %+v, %v", list, err)
	}
	abort(t, list[0].Path)
	r.wantFile(r.mounts("c"), "name", "app")
	r.wantAttached("1")
	r.wantMounted("1")
}

// TestBothKilled: what the dead daemons left is cleared away at the start, and
// so is what belongs to no snapshot.
func TestBothKilled(t *testing.T) {
	b := newReal(t)
	r := newRig(t, b, b.plainHTTP)
	ref := b.image(r, "app")
	r.wantFile(r.prepare("c", ref), "name", "app")
	for _, orphan := range []string{"new-123", "77"} {
		if err := os.MkdirAll(r.path(orphan, "block", "mountpoint"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
	b.kill()
	b.start()
	r.start()
	r.wantFile(r.mounts("c"), "name", "app")
	r.wantMounted("1")
	if got := r.dirs(); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("got directories %v", got)
	}
}

// TestOrphanWithDevice: the device and the mount of a snapshot that the metadata
// do not know go, too.
func TestOrphanWithDevice(t *testing.T) {
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		r.wantFile(r.prepare("c", image("app")), "name", "app")
		r.stop()
		if err := os.Remove(filepath.Join(r.opts.Root, "metadata.db")); err != nil {
			t.Fatal(err)
		}
		r.start()
		r.wantMounted()
		r.wantAttached()
		if got := r.dirs(); len(got) != 0 {
			t.Errorf("got directories %v", got)
		}
		r.wantFile(r.prepare("c", image("app")), "name", "app")
	})
}

// TestUnmountedByHand: an operator's unmount is made good.
func TestUnmountedByHand(t *testing.T) {
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		r.wantFile(r.prepare("c", image("app")), "name", "app")
		if err := blockmount.Unmount(r.path("1", "block", "mountpoint")); err != nil {
			t.Fatal(err)
		}
		r.wantFile(r.mounts("c"), "name", "app")
	})
}
