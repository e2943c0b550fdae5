// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// Devices whose layers are downloaded while they are read.

// downloading are the options of a node that downloads at once, slowly enough
// for something to happen meanwhile.
func downloading() nodeOptions {
	o := quick(time.Minute)
	o.registry.BytesPerSecond = 4 << 20
	o.download = &download.Options{Extent: extent, Pause: time.Millisecond}
	return o
}

// pushFor is push with a place on the node for the layer.
func (n *node) pushFor(name string) (v *spec.Volume, content []byte, file string) {
	n.t.Helper()
	v, content = n.push()
	v.Lowers[0].Dir = filepath.Join(n.dir, name)
	if err := os.Mkdir(v.Lowers[0].Dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return v, content, filepath.Join(v.Lowers[0].Dir, "overlaybd.commit")
}

// awaitLocal waits until all layers of all devices are on the node.
func (n *node) awaitLocal() {
	n.t.Helper()
	for done := false; !done; <-time.After(time.Millisecond) {
		list, err := n.Attachments(n.t.Context())
		if err != nil || n.t.Context().Err() != nil {
			n.t.Fatal("layers did not become local:", err)
		}
		done = true
		for _, a := range list {
			done = done && a.LocalBytes == a.LayerBytes
		}
	}
}

func (n *node) wantFile(file string) {
	n.t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, n.blob) {
		n.t.Errorf("%s is not the layer, %v", file, err)
	}
}

// TestDownload: whoever reads a device before, while and after its layer comes
// to be local notices nothing, and then no network is needed; not by the next
// attach either.
func TestDownload(t *testing.T) {
	n := newNodeOf(t, downloading())
	v, content, file := n.pushFor("layer")
	path := n.save("1", v)
	a := n.attach("1", path)
	if a.LocalBytes == a.LayerBytes || a.LayerBytes != int64(len(n.blob)) {
		t.Errorf("got %+v right after the attach", a)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				wantRead(t, a.Path, content)
			}
		})
	}
	n.awaitLocal()
	cancel()
	wg.Wait()
	n.wantFile(file)
	n.awaitNear("1", path)

	n.registry.ResetLog()
	n.registry.SetDown(true)
	wantRead(t, a.Path, content)
	wantAll(t, a.Path, content)
	if err := n.Detach(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	b := n.attach("1", path)
	wantAll(t, b.Path, content)
	if b.LocalBytes != b.LayerBytes || b.LayerBytes == 0 {
		t.Errorf("got %+v, want all of it local", b)
	}
	if got := n.registry.Log(); len(got) > 0 {
		t.Errorf("the registry was asked: %+v", got)
	}
}

// TestDownloadShared: what two devices show is downloaded once.
func TestDownloadShared(t *testing.T) {
	n := newNodeOf(t, downloading())
	v, content, file := n.pushFor("layer")
	other := *v
	other.Lowers = []spec.Lower{v.Lowers[0]}
	other.Lowers[0].Dir = t.TempDir()
	n.registry.ResetLog()
	var devices []string
	for id, v := range map[string]*spec.Volume{"1": v, "2": v, "3": &other} {
		devices = append(devices, n.attach(id, n.save(id, v)).Path)
	}
	n.awaitLocal()
	n.wantFile(file)
	var asked int64
	for _, r := range n.registry.Log() {
		asked += r.N
	}
	// Opening and the download may have asked for the ends at the same time.
	if most := int64(len(n.blob)) + 4*extent; asked > most {
		t.Errorf("%d bytes were asked for, of a layer of %d", asked, len(n.blob))
	}
	n.registry.SetDown(true)
	for _, device := range devices {
		wantAll(t, device, content)
	}
	if err := n.Detach(t.Context(), "1"); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"2", "3"} {
		wantRead(t, n.attach(id, filepath.Join(n.dir, id+".json")).Path, content)
	}
}

// TestDownloadOfWrongBytes leaves no file, and the device as it was.
func TestDownloadOfWrongBytes(t *testing.T) {
	o := downloading()
	o.download.Tries, o.download.Delay = 3, 100*time.Millisecond
	n := newNodeOf(t, o)
	v, content, file := n.pushFor("layer")
	a := n.attach("1", n.save("1", v))
	n.registry.ResetLog()
	n.registry.Fault(fetchertest.Fault{Body: fetchertest.Corrupt, After: 1, Times: -1})
	for n.downloads.Stats().Mismatches < 3 {
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Fatal("wrong bytes in place:", err)
		}
		<-time.After(time.Millisecond)
	}
	n.registry.ClearFaults()
	wantRecovery(t, a.Path, content)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestDownloadRots: a read that finds the file damaged is answered by the
// registry, and the file replaced; after a new attach as well.
func TestDownloadRots(t *testing.T) {
	n := newNodeOf(t, downloading())
	v, content, file := n.pushFor("layer")
	path := n.save("1", v)
	a := n.attach("1", path)
	for i := range 2 {
		n.awaitLocal()
		rot(t, file, contentSize/4, contentSize*3/4)
		wantRead(t, a.Path, content)
		n.awaitLocal()
		n.wantFile(file)
		if got := n.downloads.Stats(); got.Damaged != int64(i+1) {
			t.Errorf("got %+v", got)
		}
		if err := n.Detach(t.Context(), "1"); err != nil {
			t.Fatal(err)
		}
		a = n.attach("1", path)
	}
	if err := n.Detach(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	rot(t, file, 0, int64(len(n.blob)))
	wantRead(t, n.attach("1", path).Path, content)
	n.awaitLocal()
	n.wantFile(file)
}

// rot spoils bytes [from, to) of a file all over.
func rot(t *testing.T, path string, from, to int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for off := from; off < to-10; off += 500 {
		if _, err := f.WriteAt([]byte("rotten"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDetachDuringDownload: the layer's directory can be removed at once.
func TestDetachDuringDownload(t *testing.T) {
	o := downloading()
	o.registry.BytesPerSecond = 0
	n := newNodeOf(t, o)
	v, _, file := n.pushFor("layer")
	dir := filepath.Dir(file)
	path := n.save("1", v)
	for i := range 30 {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		n.attach("1", path)
		for n.downloads.Stats().FetchedBytes == 0 && i%2 == 0 {
			<-time.After(time.Millisecond)
		}
		if err := n.Detach(t.Context(), "1"); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}
