// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
)

func downloading(b *realBlock) { b.download = true }

// TestDownloadedImage: once a layer is in its snapshot's directory, containers
// start on it without a registry and without the cache.
func TestDownloadedImage(t *testing.T) {
	b := newReal(t, downloading)
	r := newRig(t, b, b.plainHTTP, func(o *snapshotter.Options) { o.AutoRemoveDevice = true })
	ref := b.image(r, "app")
	r.wantFile(r.prepare("first", ref), "name", "app")
	for {
		if _, err := os.Stat(r.path("1", "fs", "overlaybd.commit")); err == nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	b.remote.SetDown(true)
	r.wantFile(r.prepare("second", ref), "name", "app")
	r.remove("first")
	r.remove("second")

	r.stop()
	b.stop()
	if err := os.RemoveAll(filepath.Join(b.dir, "cache")); err != nil {
		t.Fatal(err)
	}
	b.start()
	r.start()
	b.remote.ResetLog()
	r.wantFile(r.prepare("third", ref), "name", "app")
	if asked := b.remote.Log(); len(asked) > 0 {
		t.Errorf("the registry was asked: %+v", asked)
	}
}

// TestRemovedWhileDownloaded pulls, uses and removes an image over and over
// while its layer comes to its directory. The rig finds what is left of it.
func TestRemovedWhileDownloaded(t *testing.T) {
	b := newReal(t, downloading)
	blob := b.push(b.remote, "app")
	r := newRig(t, b, b.plainHTTP)
	for i := range 20 {
		ref := pullAs(r, b.remote, blob, "sha256:"+strconv.Itoa(i))
		r.wantFile(r.prepare("c", ref), "name", "app")
		<-time.After(time.Duration(i) * time.Millisecond)
		r.remove("c")
		r.remove(ref)
		if left := r.dirs(); len(left) > 0 {
			t.Fatalf("left directories %v", left)
		}
	}
}
