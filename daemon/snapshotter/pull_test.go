// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// find looks for a committed layer as containerd does after Prepare said that
// it exists.
func (r *rig) find(ref, parent string) (found []snapshots.Info) {
	r.t.Helper()
	filter := fmt.Sprintf("labels.%q==%s,parent==%q", snapshots.LabelSnapshotRef, ref, parent)
	err := r.Walk(r.t.Context(), func(_ context.Context, i snapshots.Info) error {
		found = append(found, i)
		return nil
	}, filter)
	if err != nil {
		r.t.Error(err)
	}
	return found
}

func (r *rig) spec(id string) *spec.Volume {
	r.t.Helper()
	v, err := spec.Load(r.path(id, "block", "config.v1.json"))
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

func TestPull(t *testing.T) {
	need.Root(t)
	f := newFake(t)
	f.hook = func(_ context.Context, call, _ string) error {
		if call != "attachments" {
			t.Errorf("a pull called %s", call)
		}
		return nil
	}
	r := newRig(t, f, func(o *snapshotter.Options) { o.PlainHTTP = []string{"local.test:5000"} })
	var dgst [3]digest.Digest
	parent := ""
	for i, repo := range []string{"docker.io/library/base", testRepo, "local.test:5000/app"} {
		dgst[i] = digest.FromString(repo)
		ref := fmt.Sprintf("sha256:c%d", i)
		r.pullLabels(ref, parent, layerLabels(ref, dgst[i], repo))
		parent = ref
	}
	for range 2 { // the second pull is another namespace's
		r.pullLabels("sha256:c2", "sha256:c1", layerLabels("sha256:c2", dgst[2], "elsewhere.test/app"))
	}
	found := r.find("sha256:c2", "sha256:c1")
	if len(found) != 1 || found[0].Kind != snapshots.KindCommitted || found[0].Labels[snapshotter.LabelRemote] == "" {
		t.Errorf("containerd would find %+v", found)
	}
	want := &spec.Volume{
		RepoBlobURL: "http://local.test:5000/v2/app/blobs",
		Lowers: []spec.Lower{
			{Dir: r.path("1", "fs"), Digest: dgst[0], Size: 4096, RepoBlobURL: "https://registry-1.docker.io/v2/library/base/blobs"},
			{Dir: r.path("2", "fs"), Digest: dgst[1], Size: 4096, RepoBlobURL: "https://registry.test/v2/library/app/blobs"},
			{Dir: r.path("3", "fs"), Digest: dgst[2], Size: 4096},
		},
		ResultFile: r.path("3", "block", "init-debug.log"),
	}
	if d := cmp.Diff(want, r.spec("3")); d != "" {
		t.Errorf("spec (-want +got):\n%s", d)
	}
	if got := fmt.Sprint(r.dirs()); got != "[1 2 3]" {
		t.Errorf("got directories %s", got)
	}
	if ref, err := os.ReadFile(r.path("3", "image_ref")); string(ref) != "local.test:5000/app:latest" {
		t.Errorf("image_ref: got %q, %v", ref, err)
	}
}

// TestPullSameLayerOnOtherParent: the name is taken, and the layer is still
// found by its label.
func TestPullSameLayerOnOtherParent(t *testing.T) {
	need.Root(t)
	r := newRig(t, newFake(t))
	dgst := digest.FromString("layer")
	r.pull("sha256:a", "", digest.FromString("a"))
	r.pull("sha256:b", "", digest.FromString("b"))
	for range 2 {
		for _, parent := range []string{"sha256:a", "sha256:b"} {
			r.pull("sha256:top", parent, dgst)
			if found := r.find("sha256:top", parent); len(found) != 1 {
				t.Errorf("on %s containerd would find %v", parent, found)
			}
		}
	}
}

// TestPullAfterLabelsWereLost: otherwise no pull of the image would work again.
func TestPullAfterLabelsWereLost(t *testing.T) {
	need.Root(t)
	r := newRig(t, newFake(t))
	r.pull("sha256:a", "", digest.FromString("a"))
	if _, err := r.Update(t.Context(), snapshots.Info{Name: "sha256:a"}, "labels"); err != nil {
		t.Fatal(err)
	}
	if found := r.find("sha256:a", ""); len(found) != 0 {
		t.Fatalf("found %v without labels", found)
	}
	r.pull("sha256:a", "", digest.FromString("a"))
	if found := r.find("sha256:a", ""); len(found) != 1 {
		t.Errorf("containerd would find %v", found)
	}
}

func TestHostileLabels(t *testing.T) {
	need.Root(t)
	r := newRig(t, newFake(t))
	r.pull("sha256:base", "", digest.FromString("base"))
	for _, tc := range []struct{ name, label, value string }{
		{"path as digest", snapshotter.LabelBlobDigest, "sha256:../../../etc/passwd"},
		{"weak digest", snapshotter.LabelBlobDigest, "md5:d41d8cd98f00b204e9800998ecf8427e"},
		{"negative size", snapshotter.LabelBlobSize, "-1"},
		{"no size", snapshotter.LabelBlobSize, "0"},
		{"size of words", snapshotter.LabelBlobSize, "1e9"},
		{"size too large", snapshotter.LabelBlobSize, "99999999999999999999"},
		{"user in host", snapshotter.LabelImageRef, "user:pass@host/app:1"},
		{"query in host", snapshotter.LabelImageRef, "host?x=/app:1"},
		{"climbing path", snapshotter.LabelImageRef, "host/../../admin:1"},
		{"no repository", snapshotter.LabelImageRef, "host"},
		{"fragment", snapshotter.LabelImageRef, "host/app#x"},
		{"space", snapshotter.LabelImageRef, "host/a b"},
		{"mount option", snapshotter.LabelFSType, "ext4;errors=panic"},
		{"kernel's own file system", snapshotter.LabelFSType, "proc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			labels := layerLabels("sha256:x", digest.FromString("x"), testRepo)
			labels[tc.label] = tc.value
			for _, download := range []string{"", "download"} {
				labels[snapshotter.LabelDownload] = download
				_, err := r.Prepare(t.Context(), "extract", "sha256:base", snapshots.WithLabels(labels))
				if !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Errorf("download %q: got %v, want an invalid argument", download, err)
				}
			}
		})
	}
	if got := fmt.Sprint(r.dirs()); got != "[1]" {
		t.Errorf("failed pulls left directories: %s", got)
	}
}

func TestPullRefuses(t *testing.T) {
	need.Root(t)
	r := newRig(t, newFake(t))
	r.prepare("plain", "")
	r.commit("plain-1", "plain")
	download := layerLabels("sha256:x", digest.FromString("x"), testRepo)
	download[snapshotter.LabelDownload] = "download"
	for _, tc := range []struct {
		name, parent string
		labels       map[string]string
		want         error
	}{
		{"block layer on a plain one", "plain-1", layerLabels("sha256:x", digest.FromString("x"), testRepo), errdefs.ErrFailedPrecondition},
		{"block layer to download on a plain one", "plain-1", download, errdefs.ErrFailedPrecondition},
		{"TurboOCI layer on a plain one", "plain-1", turboLabels("sha256:x", digest.FromString("x"), "gzip"), errdefs.ErrFailedPrecondition},
		{"unknown parent", "none", layerLabels("sha256:x", digest.FromString("x"), testRepo), errdefs.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := r.Prepare(t.Context(), "k", tc.parent, snapshots.WithLabels(tc.labels)); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestPullTooManyLayers(t *testing.T) {
	t.Parallel() // it waits
	need.Root(t)
	r := newRig(t, newFake(t))
	parent := ""
	for i := range spec.MaxLowers {
		ref := fmt.Sprintf("sha256:c%d", i)
		r.pull(ref, parent, digest.FromString(ref))
		parent = ref
	}
	_, err := r.Prepare(t.Context(), "k", parent, snapshots.WithLabels(layerLabels("sha256:x", digest.FromString("x"), testRepo)))
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "256 lowers") {
		t.Errorf("got %v, want the limit", err)
	}
}

// TestAccelerationLayer: a trace on top of an image is part of its spec, but
// not of one that builds on it.
func TestAccelerationLayer(t *testing.T) {
	need.Root(t)
	r := newRig(t, newFake(t))
	r.pull("sha256:a", "", digest.FromString("a"))
	trace := layerLabels("sha256:t", digest.FromString("trace"), testRepo)
	trace["containerd.io/snapshot/overlaybd/acceleration-layer"] = "yes"
	r.pullLabels("sha256:t", "sha256:a", trace)
	r.pull("sha256:b", "sha256:t", digest.FromString("b"))
	if v := r.spec("2"); !v.AccelerationLayer || len(v.Lowers) != 2 {
		t.Errorf("image with a trace: got %+v", v)
	}
	if v := r.spec("3"); v.AccelerationLayer || len(v.Lowers) != 2 || v.Lowers[1].Digest != digest.FromString("b") {
		t.Errorf("layer above a trace: got %+v", v)
	}
}

const zfileMagic = "ZFile\x00\x01\x00tuji.yyf@Alibaba"

// TestDownloadedLayer follows a block layer that the client wants unpacked, or
// that came without a reference to where it is.
func TestDownloadedLayer(t *testing.T) {
	need.Root(t)
	wrapped := filepath.Join(t.TempDir(), "wrapped")
	w, err := os.Create(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Name: "overlaybd.commit", Mode: 0o444, Size: int64(len(zfileMagic))}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write([]byte(zfileMagic)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tw.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	wrappedText, err := os.ReadFile(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	dgst := digest.FromString("layer")
	asked := layerLabels("sha256:a", dgst, testRepo)
	asked[snapshotter.LabelDownload] = "download"
	unasked := layerLabels("sha256:a", dgst, testRepo)
	delete(unasked, snapshotter.LabelImageRef)

	for _, tc := range []struct {
		name, content string
		labels        map[string]string
		want          []spec.Lower // nil: a plain layer
	}{
		{"asked", zfileMagic, asked, []spec.Lower{{Digest: dgst, Size: 4096}}},
		{"raw", zfileMagic, unasked, []spec.Lower{{}}},
		{"wrapped", string(wrappedText), unasked, []spec.Lower{{}}},
		{"another file of that name", "not a layer, though long enough to be one", unasked, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, newFake(t))
			mounts, err := r.Prepare(t.Context(), "extract", "", snapshots.WithLabels(tc.labels))
			if err != nil {
				t.Fatal(err)
			}
			r.writeFile(mounts, "overlaybd.commit", tc.content)
			if err := r.Commit(t.Context(), "k8s/1/a", "extract", snapshots.WithLabels(tc.labels)); err != nil {
				t.Fatal(err)
			}
			info, err := r.Stat(t.Context(), "k8s/1/a")
			if err != nil {
				t.Fatal(err)
			}
			local := r.path("1", "fs", "overlaybd.commit")
			if tc.want == nil {
				if info.Labels[snapshotter.LabelLocalCommitPath] != "" {
					t.Errorf("a plain layer is labelled %v", info.Labels)
				}
				return
			}
			if got := info.Labels[snapshotter.LabelLocalCommitPath]; got != local {
				t.Errorf("local commit path: got %q, want %q", got, local)
			}
			for i := range tc.want {
				tc.want[i].Dir = r.path("1", "fs")
			}
			if d := cmp.Diff(tc.want, r.spec("1").Lowers); d != "" {
				t.Errorf("lowers (-want +got):\n%s", d)
			}
			r.pull("sha256:b", "k8s/1/a", digest.FromString("b"))
			if got := r.spec("2").Lowers; len(got) != 2 {
				t.Errorf("layer above: got lowers %+v", got)
			}
		})
	}
}

// TestLayerFileIsNoLink: a file from a stranger's archive is not followed and
// does not block.
func TestLayerFileIsNoLink(t *testing.T) {
	need.Root(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(zfileMagic), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"link": func(path string) error { return os.Symlink(secret, path) },
		"pipe": mkfifo,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, newFake(t))
			r.in(r.prepare("k", ""), func(dir string) {
				if err := make(filepath.Join(dir, "overlaybd.commit")); err != nil {
					t.Fatal(err)
				}
			})
			r.commit("c", "k")
			if _, err := os.Stat(r.path("1", "block")); err == nil {
				t.Error("it was taken for a layer")
			}
		})
	}
}

// TestLostSpec: a power cut may take the specs, and even the directories they
// are in, of layers that the metadata have.
func TestLostSpec(t *testing.T) {
	need.Loop(t)
	for name, damage := range map[string]func(block string) error{
		"empty":   func(block string) error { return os.Truncate(filepath.Join(block, "config.v1.json"), 0) },
		"missing": os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			r := newRig(t, f)
			r.image(f, "base")
			r.pull("sha256:top", "sha256:base", f.addLayer(t, "top"))
			want := r.spec("2")
			for _, id := range []string{"1", "2"} {
				if err := damage(r.path(id, "block")); err != nil {
					t.Fatal(err)
				}
			}
			r.wantFile(r.prepare("c", "sha256:top"), "name", "top")
			if d := cmp.Diff(want, r.spec("2")); d != "" {
				t.Errorf("spec written again (-want +got):\n%s", d)
			}
		})
	}
}

// FuzzLabels pulls a layer with labels of a stranger's.
func FuzzLabels(f *testing.F) {
	need.Root(f)
	f.Add("sha256:"+strings.Repeat("0", 64), "1", "docker.io/library/app:1", "ext4;;")
	f.Add("sha256:", "-1", "[::1]:5000/a", "erofs")
	r := newRig(f, newFake(f))
	f.Fuzz(func(t *testing.T, dgst, size, ref, fsType string) {
		labels := layerLabels("sha256:ref", digest.Digest(dgst), testRepo)
		maps.Copy(labels, map[string]string{
			snapshotter.LabelBlobSize: size, snapshotter.LabelImageRef: ref, snapshotter.LabelFSType: fsType,
		})
		if dgst == "" || size == "" || ref == "" {
			return
		}
		_, err := r.Prepare(t.Context(), "k", "", snapshots.WithLabels(labels))
		if err == nil {
			t.Fatal("a layer that is not remote was prepared")
		}
		if !errdefs.IsAlreadyExists(err) {
			return
		}
		info, err := r.Stat(t.Context(), "sha256:ref")
		if err != nil || info.Kind != snapshots.KindCommitted {
			t.Fatalf("got %+v, %v", info, err)
		}
		for _, id := range r.dirs() {
			v, err := spec.Load(r.path(id, "block", "config.v1.json"))
			if err != nil {
				t.Fatal(err)
			}
			if strings.ContainsAny(v.RepoBlobURL, "?#@ \\") || strings.Contains(v.RepoBlobURL, "..") {
				t.Fatalf("blobs at %q", v.RepoBlobURL)
			}
		}
		if err := r.Remove(t.Context(), "sha256:ref"); err != nil {
			t.Fatal(err)
		}
	})
}
