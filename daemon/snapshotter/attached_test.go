// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/daemon/referrer"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A fakeRegistry has ordinary images and what is attached to them.
type fakeRegistry struct {
	blobs     map[digest.Digest][]byte
	referrers map[digest.Digest][]ocispec.Descriptor
	down      atomic.Bool
	asked     atomic.Int64
}

func newFakeRegistry() *fakeRegistry {
	return &fakeRegistry{blobs: map[digest.Digest][]byte{}, referrers: map[digest.Digest][]ocispec.Descriptor{}}
}

func (f *fakeRegistry) Open(context.Context, string) (referrer.Repository, error) {
	f.asked.Add(1)
	if f.down.Load() {
		return nil, errors.New("registry is down")
	}
	return f, nil
}

func (f *fakeRegistry) Referrers(_ context.Context, subject digest.Digest, _ ...string) ([]ocispec.Descriptor, error) {
	return f.referrers[subject], nil
}

func (f *fakeRegistry) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	blob, ok := f.blobs[desc.Digest]
	if !ok {
		return nil, errors.New("no such blob")
	}
	return io.NopCloser(bytes.NewReader(blob)), nil
}

func (f *fakeRegistry) add(blob []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	f.blobs[desc.Digest] = blob
	return desc
}

func (f *fakeRegistry) addManifest(m ocispec.Manifest) ocispec.Descriptor {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return f.add(text)
}

// image adds an ordinary image of the layers.
func (f *fakeRegistry) image(layers ...digest.Digest) ocispec.Descriptor {
	var m ocispec.Manifest
	for _, l := range layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l, Size: 100})
	}
	return f.addManifest(m)
}

// attach adds a block image for the ordinary one subject, whose layers are
// named; salt makes it another one. It returns the block layers.
func (f *fakeRegistry) attach(kind string, subject ocispec.Descriptor, salt string, layers ...digest.Digest) (block []ocispec.Descriptor) {
	for _, of := range layers {
		desc := f.add([]byte("native " + of.String() + salt))
		if kind == referrer.TypeTurbo {
			desc = f.add(turboArchive(salt))
		}
		desc.Annotations = map[string]string{
			snapshotter.LabelBlobDigest: desc.Digest.String(),
			snapshotter.LabelBlobSize:   strconv.FormatInt(desc.Size, 10),
		}
		if kind == referrer.TypeTurbo {
			desc.Annotations[snapshotter.LabelTargetDigest] = of.String()
		}
		block = append(block, desc)
	}
	desc := f.addManifest(ocispec.Manifest{ArtifactType: kind, Subject: &subject, Layers: block})
	desc.ArtifactType = kind
	f.referrers[subject.Digest] = append(f.referrers[subject.Digest], desc)
	return block
}

func turboArchive(salt string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range []string{"ext4.fs.meta", ".turbo.ociv1"} {
		text := zfileMagic + salt
		_ = w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644})
		_, _ = io.WriteString(w, text)
	}
	_ = w.Close()
	return buf.Bytes()
}

// ociLabels are those of a layer of the ordinary image manifest, as CRI passes
// them.
func ociLabels(ref string, manifest, layer digest.Digest) map[string]string {
	return map[string]string{
		snapshots.LabelSnapshotRef:      ref,
		snapshotter.LabelCRIImageRef:    testRepo + ":latest",
		snapshotter.LabelManifestDigest: manifest.String(),
		snapshotter.LabelLayerDigest:    layer.String(),
	}
}

// lazily makes the snapshotter look for attached images in f.
func lazily(t testing.TB, f *fakeRegistry) func(*snapshotter.Options) {
	t.Helper()
	return func(o *snapshotter.Options) {
		finder, err := referrer.New(referrer.Options{Registry: f, Dir: filepath.Join(filepath.Dir(o.Root), "attached"), Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = finder.Close() })
		o.Attached = finder
	}
}

// pullOCI pulls the ordinary layers as containerd does, and returns the last
// snapshot, and how many were unpacked.
func (r *rig) pullOCI(prefix string, manifest digest.Digest, layers ...digest.Digest) (top string, unpacked int) {
	r.t.Helper()
	for i, layer := range layers {
		ref := fmt.Sprint(prefix, i)
		labels := snapshots.WithLabels(ociLabels(ref, manifest, layer))
		key := "extract-" + ref
		_, err := r.Prepare(r.t.Context(), key, top, labels)
		switch {
		case err == nil:
			unpacked++
			if err := r.Commit(r.t.Context(), ref, key, labels); err != nil && !errdefs.IsAlreadyExists(err) {
				r.t.Fatal(err)
			}
		case !errdefs.IsAlreadyExists(err):
			r.t.Fatal(err)
		}
		top = ref
	}
	return top, unpacked
}

func (r *rig) reasons() (all []string) {
	r.t.Helper()
	list, err := referrer.ReadJournal(filepath.Join(r.opts.Root, referrer.JournalName))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, v := range list {
		all = append(all, v.Image+": "+v.Reason)
	}
	return all
}

// TestAttachedTurbo: nothing of an ordinary image is downloaded if a TurboOCI
// one refers to it, and its spec can be written again.
func TestAttachedTurbo(t *testing.T) {
	need.Loop(t)
	f, reg := newFake(t), newFakeRegistry()
	r := newRig(t, f, lazily(t, reg))
	layers := []digest.Digest{digest.FromString("0"), digest.FromString("0"), f.addLayer(t, "top")}
	img := reg.image(layers...)
	reg.attach(referrer.TypeTurbo, img, "", layers...)
	top, unpacked := r.pullOCI("sha256:", img.Digest, layers...)
	if unpacked != 0 {
		t.Fatalf("%d layers were unpacked: %v", unpacked, r.reasons())
	}
	if n := reg.asked.Load(); n != 1 {
		t.Errorf("the registry was asked %d times", n)
	}
	want := &spec.Volume{RepoBlobURL: testBlobs, ResultFile: r.path("3", "block", "init-debug.log")}
	for i, l := range layers {
		dir := r.path(strconv.Itoa(i+1), "fs")
		want.Lowers = append(want.Lowers, spec.Lower{Dir: dir, File: filepath.Join(dir, "ext4.fs.meta"), TargetDigest: l})
	}
	if d := cmp.Diff(want, r.spec("3")); d != "" {
		t.Errorf("spec (-want +got):\n%s", d)
	}
	found := r.find(top, "sha256:1")
	if len(found) != 1 || found[0].Labels[snapshotter.LabelRemote] == "" {
		t.Errorf("containerd would find %+v", found)
	}
	if err := r.opts.Attached.Close(); err != nil { // with its files
		t.Fatal(err)
	}
	lazily(t, reg)(&r.opts)
	r.restart()
	r.dropSpecs("1", "2", "3")
	r.wantFile(r.prepare("c", top), "name", "top")
	if d := cmp.Diff(want, r.spec("3")); d != "" {
		t.Errorf("spec written again (-want +got):\n%s", d)
	}
	if got := r.reasons(); got != nil {
		t.Errorf("it is said to have been pulled whole: %v", got)
	}
}

// TestAttachedNative: a block image with content of its own is read from the
// same repository.
func TestAttachedNative(t *testing.T) {
	need.Root(t)
	f, reg := newFake(t), newFakeRegistry()
	r := newRig(t, f, lazily(t, reg))
	layers := []digest.Digest{digest.FromString("0"), digest.FromString("1")}
	img := reg.image(layers...)
	block := reg.attach(referrer.TypeNative, img, "", layers...)
	if _, unpacked := r.pullOCI("sha256:", img.Digest, layers...); unpacked != 0 {
		t.Fatalf("%d layers were unpacked: %v", unpacked, r.reasons())
	}
	var want []spec.Lower
	for i, desc := range block {
		want = append(want, spec.Lower{Dir: r.path(strconv.Itoa(i+1), "fs"), Digest: desc.Digest, Size: desc.Size})
	}
	if d := cmp.Diff(want, r.spec("2").Lowers); d != "" {
		t.Errorf("lowers (-want +got):\n%s", d)
	}
}

// TestAttachedNone: an image that nothing can be read in place of is pulled
// whole, and why is to be seen; the next pull may find something.
func TestAttachedNone(t *testing.T) {
	need.Root(t)
	layers := []digest.Digest{digest.FromString("0"), digest.FromString("1")}
	const name = testRepo + ":latest: "
	for _, tc := range []struct {
		name string
		make func(reg *fakeRegistry, img ocispec.Descriptor)
		want string
	}{
		{"none", func(*fakeRegistry, ocispec.Descriptor) {}, name + referrer.ErrNone.Error()},
		{"no registry", func(reg *fakeRegistry, _ ocispec.Descriptor) { reg.down.Store(true) }, name + "registry is down"},
		{"another image's layers", func(reg *fakeRegistry, img ocispec.Descriptor) {
			reg.attach(referrer.TypeTurbo, img, "", layers[1], layers[0])
		}, "its content is not in " + layers[0].String()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reg := newFakeRegistry()
			img := reg.image(layers...)
			tc.make(reg, img)
			r := newRig(t, newFake(t), lazily(t, reg))
			if _, unpacked := r.pullOCI("sha256:", img.Digest, layers...); unpacked != 2 {
				t.Errorf("%d layers were unpacked", unpacked)
			}
			if got := r.reasons(); len(got) != 1 || !strings.Contains(got[0], tc.want) {
				t.Errorf("got reasons %q, want %q", got, tc.want)
			}
			if n := reg.asked.Load(); n != 1 {
				t.Errorf("the registry was asked %d times", n)
			}
			r.removeAll(t.Context())
			reg.down.Store(false)
			reg.referrers[img.Digest] = nil
			reg.attach(referrer.TypeTurbo, img, "", layers...)
			lazily(t, reg)(&r.opts) // as if time had passed
			r.restart()
			if _, unpacked := r.pullOCI("sha256:", img.Digest, layers...); unpacked != 0 || len(r.reasons()) != 0 {
				t.Errorf("later, %d layers were unpacked: %q", unpacked, r.reasons())
			}
		})
	}
}

// TestAttachedAside: what the snapshotter does not look for.
func TestAttachedAside(t *testing.T) {
	need.Root(t)
	reg := newFakeRegistry()
	layer := digest.FromString("0")
	img := reg.image(layer)
	reg.attach(referrer.TypeTurbo, img, "", layer)
	r := newRig(t, newFake(t), lazily(t, reg))
	r.prepare("plain", "")
	r.commit("plain-1", "plain")
	without := func(key string) map[string]string {
		labels := ociLabels("sha256:x", img.Digest, layer)
		delete(labels, key)
		return labels
	}
	download := without("")
	download[snapshotter.LabelDownload] = "download"
	for _, tc := range []struct {
		name, parent string
		labels       map[string]string
		want         string // a reason
	}{
		{"to be downloaded", "", download, ""},
		{"without reference", "", without(snapshotter.LabelCRIImageRef), ""},
		{"without manifest", "", without(snapshotter.LabelManifestDigest), "does not say which manifest"},
		{"over an unpacked layer", "plain-1", without(""), "unpacked"},
		{"no layer of a pull", "", without(snapshots.LabelSnapshotRef), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := r.Prepare(t.Context(), tc.name, tc.parent, snapshots.WithLabels(tc.labels)); err != nil {
				t.Error(err)
			}
			if got := strings.Join(r.reasons(), "\n"); !strings.Contains(got, tc.want) {
				t.Errorf("got reasons %q, want %q", got, tc.want)
			}
		})
	}
	if n := reg.asked.Load(); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
}

// TestAttachedOtherKind: two images share a layer that was converted differently
// for each. The second must not be put together of both: its layers are unpacked
// over what is there.
func TestAttachedOtherKind(t *testing.T) {
	need.Loop(t)
	f, reg := newFake(t), newFakeRegistry()
	r := newRig(t, f, lazily(t, reg))
	shared, own := f.addLayer(t, "shared"), digest.FromString("own")
	one, two := reg.image(shared), reg.image(shared, own)
	reg.attach(referrer.TypeTurbo, one, "a", shared)
	reg.attach(referrer.TypeTurbo, two, "b", shared, own)
	if _, unpacked := r.pullOCI("sha256:", one.Digest, shared); unpacked != 0 {
		t.Fatalf("not lazy: %q", r.reasons())
	}
	top, unpacked := r.pullOCI("sha256:", two.Digest, shared, own)
	if unpacked != 1 {
		t.Errorf("%d layers were unpacked", unpacked)
	}
	if got := r.reasons(); len(got) != 1 || !strings.Contains(got[0], "of another kind") {
		t.Errorf("got reasons %q", got)
	}
	r.wantFile(r.prepare("c", top), "name", "shared")
}

// TestAttachedAtOnce: many pull the same image, from several namespaces.
func TestAttachedAtOnce(t *testing.T) {
	need.Root(t)
	reg := newFakeRegistry()
	layers := []digest.Digest{digest.FromString("0"), digest.FromString("1"), digest.FromString("2")}
	img := reg.image(layers...)
	reg.attach(referrer.TypeTurbo, img, "", layers...)
	r := newRig(t, newFake(t), lazily(t, reg))
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			parent := ""
			for i, layer := range layers {
				ref := fmt.Sprint("sha256:", i)
				_, err := r.Prepare(t.Context(), fmt.Sprint(n, "-extract-", i), parent, snapshots.WithLabels(ociLabels(ref, img.Digest, layer)))
				if !errdefs.IsAlreadyExists(err) {
					t.Errorf("layer %d: %v", i, err)
				}
				parent = ref
			}
		})
	}
	all.Wait()
	if got := r.dirs(); len(got) != len(layers) {
		t.Errorf("got directories %v", got)
	}
	if n := reg.asked.Load(); n != 1 {
		t.Errorf("the registry was asked %d times", n)
	}
}
