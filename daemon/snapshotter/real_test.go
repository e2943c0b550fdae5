// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/daemon/blockd"
	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A realBlock is a block daemon of real parts, over registries in this process.
type realBlock struct {
	*blockd.Daemon

	t        testing.TB
	dir      string
	download bool // layers, at once
	remote   *fetchertest.Registry
	other    *fetchertest.Registry
	close    func() error
}

func newReal(t testing.TB, change ...func(*realBlock)) *realBlock {
	t.Helper()
	need.FUSE(t)
	need.Loop(t)
	need.Command(t, "mkfs.ext4")
	b := &realBlock{t: t, dir: t.TempDir(), remote: fetchertest.NewRegistry(t, fetchertest.Options{}), other: fetchertest.NewRegistry(t, fetchertest.Options{})}
	for _, c := range change {
		c(b)
	}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *realBlock) start() {
	b.t.Helper()
	exporter, err := fuse.New(fuse.Options{Dir: filepath.Join(b.dir, "devices")})
	if err != nil {
		b.t.Fatal(err)
	}
	blocks, err := cache.Open(cache.Options{Dir: filepath.Join(b.dir, "cache")})
	if err != nil {
		b.t.Fatal(err)
	}
	opener := registry.New(registry.Options{PlainHTTP: []string{b.remote.Host(), b.other.Host()}})
	cached := blocks.Opener(opener)
	blobs, log := fetcher.Schemes{"http": cached, "https": cached, "file": file.Opener{}}, slog.New(slog.DiscardHandler)
	downloads := download.New(download.Options{Blobs: blobs, Logger: log, Off: !b.download})
	b.Daemon, err = blockd.New(blockd.Options{
		StateDir:  filepath.Join(b.dir, "state"),
		Blobs:     blobs,
		Patience:  time.Minute,
		Logger:    log,
		Disk:      image.DiskOptions{Direct: true},
		Downloads: downloads,
	})
	if err == nil {
		err = b.Start(b.t.Context(), blockd.Exporter{Name: "fuse", Exporter: exporter})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.close = func() error { return errors.Join(exporter.Close(), downloads.Close(), blocks.Close(), opener.Close()) }
}

func (b *realBlock) stop() {
	b.t.Helper()
	if err := errors.Join(b.Close(context.Background()), b.close()); err != nil {
		b.t.Error(err)
	}
}

// kill ends the daemon as SIGKILL does: its devices die in use.
func (b *realBlock) kill() {
	b.t.Helper()
	list, err := b.Attachments(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, a := range list {
		abort(b.t, a.Path)
		for err = backend.ErrBusy; errdefs.IsFailedPrecondition(err) || errors.Is(err, backend.ErrBusy); {
			err = b.Detach(b.t.Context(), a.ID) // until it has noticed
		}
		if err != nil {
			b.t.Error(err)
		}
	}
	if err := b.close(); err != nil {
		b.t.Error(err)
	}
}

// plainHTTP lets a rig pull from b's registries.
func (b *realBlock) plainHTTP(o *snapshotter.Options) {
	o.PlainHTTP = []string{b.remote.Host(), b.other.Host()}
}

// image makes an image whose root has the one file "name", holding text, in the
// first registry, and pulls it into r.
func (b *realBlock) image(r *rig, text string) (ref string) {
	b.t.Helper()
	return b.imageAt(b.remote, r, text)
}

func (b *realBlock) imageAt(at *fetchertest.Registry, r *rig, text string) (ref string) {
	b.t.Helper()
	return pullAs(r, at, b.push(at, text), "sha256:"+text)
}

// pullAs pulls a layer in the registry at as the image ref.
func pullAs(r *rig, at *fetchertest.Registry, blob fetcher.Ref, ref string) string {
	r.t.Helper()
	r.pullLabels(ref, "", map[string]string{
		snapshots.LabelSnapshotRef:  ref,
		snapshotter.LabelBlobDigest: blob.Digest.String(),
		snapshotter.LabelBlobSize:   strconv.FormatInt(blob.Size, 10),
		snapshotter.LabelImageRef:   at.Host() + "/test/image:latest",
	})
	return ref
}

// push makes a layer, by way of a snapshotter of its own, and puts it into at.
func (b *realBlock) push(at *fetchertest.Registry, text string) fetcher.Ref {
	b.t.Helper()
	r := newRig(b.t, b)
	mounts := r.prepare("build", "", snapshotter.LabelWritable, "dir", snapshotter.LabelVSize, "1")
	r.writeFile(mounts, "name", text)
	r.commit("built", "build")
	info, err := r.Stat(b.t.Context(), "built")
	if err != nil {
		b.t.Fatal(err)
	}
	content, err := os.ReadFile(info.Labels[snapshotter.LabelLocalCommitPath])
	if err != nil {
		b.t.Fatal(err)
	}
	r.remove("built")
	return at.AddBlob("test/image", content)
}

// abort ends the FUSE connection of the device at path, in use or not.
func abort(t testing.TB, path string) {
	t.Helper()
	if err := unix.Unmount(filepath.Dir(path), unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
}
