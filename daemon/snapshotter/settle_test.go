// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestNearImageIsReadAhead: once an image is on the node, the next container
// that starts has its mount read through the page cache.
func TestNearImageIsReadAhead(t *testing.T) {
	t.Parallel()
	need.EROFS(t)
	f := newFake(t)
	r := newRig(t, f)
	path := filepath.Join(t.TempDir(), "image")
	mkfs(t, need.Command(t, "mkfs.erofs"), path, t.TempDir())
	r.pull("app", "", f.register(path, "app"))
	for _, key := range []string{"first", "second"} {
		r.prepare(key, "app")
		if !readsDirectly(t, r.path("1", "block", "mountpoint")) {
			t.Error("read ahead while it is far")
		}
	}
	f.near("1")
	r.prepare("third", "app")
	if readsDirectly(t, r.path("1", "block", "mountpoint")) {
		t.Error("not read ahead though it is near")
	}
}

// readsDirectly reports whether the EROFS on target passes the page cache of
// its device.
func readsDirectly(t *testing.T, target string) bool {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil || len(infos) != 1 || infos[0].FSType != "erofs" {
		t.Fatalf("got %+v, %v; want an EROFS on %s", infos, err, target)
	}
	return strings.Contains(infos[0].VFSOptions, "directio")
}
