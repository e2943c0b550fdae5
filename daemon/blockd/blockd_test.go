// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/blockd"
	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A node is a Daemon over real parts, as the command assembles them: FUSE above,
// a scripted registry below.
type node struct {
	*blockd.Daemon
	t        *testing.T
	dir      string
	registry *fetchertest.Registry
	blob     []byte // the layer that was pushed last

	downloads *download.Downloader // if the options have any
}

// nodeOptions are what tests set of a node's parts.
type nodeOptions struct {
	registry fetchertest.Options
	remote   registry.Options
	retry    retry.Options
	cache    cache.Options
	patience time.Duration

	elsewhere func(fetcher.Ref) []mirror.Place
	download  *download.Options // nil for none; what it needs is set
}

func newNode(t *testing.T) *node {
	t.Helper()
	return newNodeOf(t, nodeOptions{patience: time.Minute, retry: retry.Options{Budget: 50 * time.Millisecond}})
}

func newNodeOf(t *testing.T, o nodeOptions) *node {
	t.Helper()
	need.Root(t)
	need.FUSE(t)
	n := &node{t: t, dir: t.TempDir(), registry: fetchertest.NewRegistry(t, o.registry)}
	exporter, err := fuse.New(fuse.Options{Dir: filepath.Join(n.dir, "devices")})
	if err != nil {
		t.Fatal(err)
	}
	o.cache.Dir = cmp.Or(o.cache.Dir, filepath.Join(n.dir, "cache"))
	blocks, err := cache.Open(o.cache)
	if err != nil {
		t.Fatal(err)
	}
	o.remote.PlainHTTP = []string{n.registry.Host()}
	remote := registry.New(o.remote)
	mirrored := mirror.New(remote, limit.New(remote, limit.Options{}), mirror.Options{Elsewhere: o.elsewhere})
	cached := blocks.Opener(retry.New(mirrored, o.retry))
	opts := blockd.Options{
		StateDir: filepath.Join(n.dir, "state"),
		Blobs:    fetcher.Schemes{"http": cached, "https": cached, "file": file.Opener{}},
		Patience: o.patience,
		Logger:   slog.New(slog.DiscardHandler),
		Disk:     image.DiskOptions{Direct: true},
		Warm:     remote.Warm,
		Reach: func(ctx context.Context, blob fetcher.Ref) error {
			b, err := remote.Open(ctx, blob)
			if err != nil {
				return err
			}
			return b.Close()
		},
	}
	if o.download != nil {
		o.download.Blobs, o.download.Logger = opts.Blobs, opts.Logger
		n.downloads = download.New(*o.download)
		opts.Downloads = n.downloads
	}
	n.Daemon, err = blockd.New(opts)
	if err == nil {
		err = n.Start(t.Context(), blockd.Exporter{Name: "fuse", Exporter: exporter})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(n.Close(context.WithoutCancel(t.Context())), exporter.Close())
		if n.downloads != nil {
			err = errors.Join(err, n.downloads.Close())
		}
		if err = errors.Join(err, blocks.Close(), remote.Close()); err != nil {
			t.Errorf("close node: %v", err)
		}
	})
	return n
}

// save writes v as the spec of id and returns its path.
func (n *node) save(id string, v *spec.Volume) string {
	n.t.Helper()
	path := filepath.Join(n.dir, id+".json")
	v.ResultFile = filepath.Join(n.dir, id+".result")
	if err := v.Save(path); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// remote returns a spec whose one lower is a golden layer in the registry, and
// the hash of its volume.
func (n *node) remote() (v *spec.Volume, hash string) {
	n.t.Helper()
	_, files := need.Golden(n.t, "rw/a.commit.z.tar")
	g := files["rw/a.commit.z.tar"]
	content, err := os.ReadFile(g.Path)
	if err != nil {
		n.t.Fatal(err)
	}
	ref := n.registry.AddBlob("test/image", content)
	repo := strings.TrimSuffix(ref.URL, "/"+ref.Digest.String())
	lower := spec.Lower{Digest: ref.Digest, Size: int64(len(content))}
	return &spec.Volume{RepoBlobURL: repo, Lowers: []spec.Lower{lower}}, g.Volume
}

func (n *node) attach(id, path string) blockapi.Attachment {
	n.t.Helper()
	a, err := n.Attach(n.t.Context(), id, path)
	if err != nil {
		n.t.Fatal(err)
	}
	return a
}

// awaitNear waits until the device id is called near.
func (n *node) awaitNear(id, path string) {
	n.t.Helper()
	for !n.attach(id, path).Near {
		select {
		case <-time.After(time.Millisecond):
		case <-n.t.Context().Done():
			n.t.Fatalf("device %s is never near", id)
		}
	}
}

// openDevice opens a device for reads that all reach its daemon: the kernel
// keeps nothing.
func openDevice(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
}

func fileHash(t *testing.T, path string) string {
	t.Helper()
	f, err := openDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestAttachRemoteImage(t *testing.T) {
	n := newNode(t)
	v, want := n.remote()
	path := n.save("1", v)
	a := n.attach("1", path)
	if !a.File || a.Writable || a.Size != 64<<20 || a.State != blockapi.Serving {
		t.Errorf("got attachment %+v", a)
	}
	if got := fileHash(t, a.Path); got != want {
		t.Errorf("device reads as %s, want %s", got, want)
	}
	if result, err := os.ReadFile(v.ResultFile); err != nil || string(result) != "success" {
		t.Errorf("result file says %q, %v", result, err)
	}

	if a.Near {
		t.Error("called near before anything was read")
	}
	again := n.attach("1", path)
	n.awaitNear("1", path)
	if again.Path != a.Path || again.FetchedBytes == 0 {
		t.Errorf("attached again: %+v; want the same device with bytes fetched", again)
	}
	list, err := n.Attachments(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "1" {
		t.Errorf("got %+v, %v; want the one device", list, err)
	}
	if _, err := n.Attach(t.Context(), "1", n.save("2", v)); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("another spec under the same id: %v, want ErrAlreadyExists", err)
	}
	for range 2 { // a missing device is no error
		if err := n.Detach(t.Context(), "1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(a.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("device after Detach: %v, want it gone", err)
	}
}

func TestDetachBusy(t *testing.T) {
	n := newNode(t)
	v, _ := n.remote()
	a := n.attach("1", n.save("1", v))
	f, err := os.Open(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), "1"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("got %v, want ErrFailedPrecondition", err)
	}
	if _, err := f.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("read after the refused Detach: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAttachFailureSaysWhy(t *testing.T) {
	n := newNode(t)
	v, _ := n.remote()
	v.Lowers[0].Digest = "sha256:" + v.Lowers[0].Digest[len("sha256:"):][:63] + "0"
	_, err := n.Attach(t.Context(), "1", n.save("1", v))
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), v.Lowers[0].Digest.String()) {
		t.Errorf("got %v; want ErrNotFound naming the layer", err)
	}
	result, rerr := os.ReadFile(v.ResultFile)
	if rerr != nil || !strings.HasPrefix(string(result), "failed:") {
		t.Errorf("result file says %q, %v", result, rerr)
	}
	if list, _ := n.Attachments(t.Context()); len(list) != 0 {
		t.Errorf("a failed attach left %+v", list)
	}
	if _, err := n.Attach(t.Context(), "1", filepath.Join(n.dir, "none.json")); !errdefs.IsNotFound(err) {
		t.Errorf("missing spec: %v, want ErrNotFound", err)
	}
}

// TestOutageIsWaitedOut: a reader is held while the registry is away, the
// device says so, and the read succeeds once the registry is back.
func TestOutageIsWaitedOut(t *testing.T) {
	n := newNode(t)
	v, want := n.remote()
	a := n.attach("1", n.save("1", v))
	n.registry.SetDown(true)
	sum := make(chan string)
	go func() { sum <- fileHash(t, a.Path) }()
	for state := blockapi.Serving; state != blockapi.Waiting; {
		list, err := n.Attachments(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatalf("got %+v, %v", list, err)
		}
		state = list[0].State
	}
	n.registry.SetDown(false)
	if got := <-sum; got != want {
		t.Errorf("device reads as %s after the outage, want %s", got, want)
	}
}

// TestSlowRegistryDelaysNobodyElse attaches one image while another's registry
// does not answer.
func TestSlowRegistryDelaysNobodyElse(t *testing.T) {
	n := newNode(t)
	slow, _ := n.remote()
	_, files := need.Golden(t, "rw/a.commit")
	fast := &spec.Volume{Lowers: []spec.Lower{{File: files["rw/a.commit"].Path}}}

	ctx, cancel := context.WithCancel(t.Context())
	n.registry.Fault(fetchertest.Fault{Hang: true})
	done := make(chan error)
	go func() {
		_, err := n.Attach(ctx, "slow", n.save("slow", slow))
		done <- err
	}()
	if err := n.registry.Await(t.Context(), fetchertest.Origin, 1); err != nil {
		t.Fatal(err)
	}
	n.attach("fast", n.save("fast", fast))
	select {
	case err := <-done:
		t.Fatalf("the slow attach ended first: %v", err)
	default:
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a cancelled attach succeeded")
	}
	n.registry.Release()
}

// TestWritableVolume creates a writable layer by attaching it, writes through
// the device, and seals it.
func TestWritableVolume(t *testing.T) {
	n := newNode(t)
	up := spec.Upper{Data: filepath.Join(n.dir, "writable_data"), Index: filepath.Join(n.dir, "writable_index"), VSizeGB: 1}
	path := n.save("1", &spec.Volume{Upper: up})
	a := n.attach("1", path)
	if !a.Writable || a.Size != 1<<30 {
		t.Errorf("got attachment %+v", a)
	}
	want := bytes.Repeat([]byte("through the device "), 4096)
	writeThrough(t, a.Path, want)

	sealed := filepath.Join(n.dir, "overlaybd.sealed")
	if err := n.Seal(t.Context(), path, sealed); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("seal while attached: %v, want ErrFailedPrecondition", err)
	}
	if err := n.Detach(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Seal(t.Context(), path, sealed); err != nil {
			t.Fatal(err)
		}
	}
	b := n.attach("2", n.save("2", &spec.Volume{Lowers: []spec.Lower{{File: sealed}}}))
	got := make([]byte, len(want))
	f, err := openDevice(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("sealed layer does not hold what was written (%v)", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func writeThrough(t *testing.T, path string, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(p)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
