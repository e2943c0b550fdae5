// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
)

// TestReleaseIdle: what runs keeps its device, and finds it mounted afterwards;
// everything else goes, and comes back when it is asked for.
func TestReleaseIdle(t *testing.T) {
	t.Parallel() // it waits
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		idle, used := image("idle"), image("used")
		onIdle := r.prepare("on-idle", idle) // a container that has ended
		r.wantFile(onIdle, "name", "idle")
		overlay := r.run(r.prepare("on-used", used))
		r.writeFile(r.prepare("stopped", used, snapshotter.LabelWritable, "dir"), "new", "stopped")
		own := r.run(r.prepare("running", used, snapshotter.LabelWritable, "dir"))
		node := r.prepare("node", used, snapshotter.LabelWritable, "dev")

		if err := r.ReleaseIdle(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.wantMounted("2", "6") // of the image that is used, and of the container running
		r.wantAttached("2", "6", "7")
		r.wantRead(filepath.Join(overlay, "name"), "used")
		if err := os.WriteFile(filepath.Join(own, "new"), []byte("running"), 0o600); err != nil {
			t.Error(err)
		}

		r.restart()
		r.wantFile(r.mounts("running"), "new", "running") // one file system, not two
		r.wantFile(r.mounts("stopped"), "new", "stopped")
		r.wantFile(r.mounts("on-idle"), "name", "idle")
		r.wantFile(node, "name", "used")
		r.wantRead(filepath.Join(overlay, "name"), "used")
		r.unmount(overlay)
		r.unmount(own)
	})
}

// TestReleaseIdleLeavesNothing where nothing runs, not even what kept an image
// mounted for the next container.
func TestReleaseIdleLeavesNothing(t *testing.T) {
	eachBlock(t, func(t *testing.T, r *rig, image func(string) string) {
		r.wantFile(r.prepare("c", image("app")), "name", "app")
		r.remove("c")
		r.wantMounted("1")
		if err := r.ReleaseIdle(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.wantMounted()
		r.wantAttached()
		for _, user := range usersOf(r.opts.Root) {
			t.Errorf("left: %s", user)
		}
	})
}
