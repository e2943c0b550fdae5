// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

const (
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
	dockerLayer = "application/vnd.docker.image.rootfs.diff.tar"
	testBlobs   = "https://registry.test/v2/library/app/blobs"
)

// turboLabels are those of a TurboOCI layer that is to be downloaded, whose
// target is compressed with compression, if that is not empty.
func turboLabels(ref string, target digest.Digest, compression string) map[string]string {
	labels := remoteLabels(ref, target, compression)
	labels[snapshotter.LabelDownload] = "download"
	return labels
}

// remoteLabels are those of one that is not.
func remoteLabels(ref string, target digest.Digest, compression string) map[string]string {
	labels := layerLabels(ref, digest.FromString("metadata for "+target.String()), testRepo)
	labels[snapshotter.LabelTargetDigest] = target.String()
	labels[snapshotter.LabelTargetMediaType] = strings.TrimSuffix(ociLayer+"+"+compression, "+")
	return labels
}

// oldLabels are those labels as the reference once called them.
func oldLabels(ref string, target digest.Digest, compression string) map[string]string {
	labels := turboLabels(ref, target, compression)
	delete(labels, snapshotter.LabelTargetDigest)
	delete(labels, snapshotter.LabelTargetMediaType)
	labels["containerd.io/snapshot/overlaybd/fastoci/target-digest"] = target.String()
	labels["containerd.io/snapshot/overlaybd/fastoci/target-media-type"] = strings.TrimSuffix(dockerLayer+"."+compression, ".")
	return labels
}

// files are what a layer holds, by name.
type files map[string]string

// unpack pulls a layer that is to be unpacked, which holds files.
func (r *rig) unpack(ref, parent string, labels map[string]string, all files) error {
	r.t.Helper()
	key := "extract-" + ref
	mounts, err := r.Prepare(r.t.Context(), key, parent, snapshots.WithLabels(labels))
	if err != nil {
		return err
	}
	for name, text := range all {
		r.writeFile(mounts, name, text)
	}
	return r.Commit(r.t.Context(), ref, key, snapshots.WithLabels(labels))
}

func (r *rig) mustUnpack(ref, parent string, labels map[string]string, all files) {
	r.t.Helper()
	if err := r.unpack(ref, parent, labels, all); err != nil {
		r.t.Fatal(err)
	}
}

// TestTurboPull pulls an image of layers of every kind and runs a container on
// it, also after a power cut took the specs.
func TestTurboPull(t *testing.T) {
	need.Loop(t)
	f := newFake(t)
	heard := make(chan string, 10)
	f.expect = func(_ context.Context, repository string, blobs []blockapi.Blob) error {
		if len(blobs) == 0 {
			heard <- repository
		}
		return nil
	}
	r := newRig(t, f)
	meta := files{"ext4.fs.meta": zfileMagic, ".turbo.ociv1": ""}
	target := []digest.Digest{digest.FromString("0"), digest.FromString("1"), digest.FromString("2"), f.addLayer(t, "top")}
	r.mustUnpack("sha256:0", "", turboLabels("sha256:0", target[0], ""), meta)
	meta["gzip.meta"] = "index"
	r.mustUnpack("sha256:1", "sha256:0", oldLabels("sha256:1", target[1], "gzip"), meta)
	native := digest.FromString("native")
	r.pullLabels("sha256:2", "sha256:1", layerLabels("sha256:2", native, "elsewhere.test/app"))
	delete(meta, "gzip.meta")
	meta["zstd.meta"] = "index"
	r.mustUnpack("sha256:3", "sha256:2", turboLabels("sha256:3", target[3], "zstd"), meta)

	if got := <-heard; got != testBlobs {
		t.Errorf("the block daemon heard of %s", got)
	}
	want := &spec.Volume{
		RepoBlobURL: testBlobs,
		Lowers: []spec.Lower{
			{Dir: r.path("1", "fs"), File: r.path("1", "fs", "ext4.fs.meta"), TargetDigest: target[0], RepoBlobURL: testBlobs},
			{Dir: r.path("2", "fs"), File: r.path("2", "fs", "ext4.fs.meta"), TargetDigest: target[1], GzipIndex: r.path("2", "fs", "gzip.meta"), RepoBlobURL: testBlobs},
			{Dir: r.path("3", "fs"), Digest: native, Size: 4096, RepoBlobURL: "https://elsewhere.test/v2/app/blobs"},
			{Dir: r.path("4", "fs"), File: r.path("4", "fs", "ext4.fs.meta"), TargetDigest: target[3], GzipIndex: r.path("4", "fs", "zstd.meta")},
		},
		ResultFile: r.path("4", "block", "init-debug.log"),
	}
	if d := cmp.Diff(want, r.spec("4")); d != "" {
		t.Errorf("spec (-want +got):\n%s", d)
	}
	r.dropSpecs("1", "2", "3", "4")
	r.restart()
	r.wantFile(r.prepare("c", "sha256:3"), "name", "top")
	if d := cmp.Diff(want, r.spec("4")); d != "" {
		t.Errorf("spec written again (-want +got):\n%s", d)
	}
	usage, err := r.Usage(t.Context(), "sha256:3")
	if err != nil || usage.Size == 0 || usage.Inodes < 6 { // directory, three files, spec, mark
		t.Errorf("usage %+v, %v", usage, err)
	}
}

// TestTurboRemote: nothing of a TurboOCI layer is downloaded where nobody asks for
// that. The block daemon hears of its metadata, and which to unpack of them.
func TestTurboRemote(t *testing.T) {
	need.Root(t)
	f := newFake(t)
	heard := make(chan blockapi.Blob, 10)
	f.expect = func(_ context.Context, _ string, blobs []blockapi.Blob) error {
		for _, b := range blobs {
			heard <- b
		}
		return nil
	}
	r := newRig(t, f, func(o *snapshotter.Options) { o.TurboFS = []string{"ext4", "erofs"} })
	choice := []string{"ext4.fs.meta"}
	if blockmount.Supported("erofs") {
		choice = append(choice, "erofs.fs.meta")
	}
	target, native := []digest.Digest{digest.FromString("0"), digest.FromString("2")}, digest.FromString("native")
	labels := []map[string]string{
		remoteLabels("sha256:0", target[0], "gzip"), layerLabels("sha256:1", native, testRepo), remoteLabels("sha256:2", target[1], ""),
	}
	want := &spec.Volume{RepoBlobURL: testBlobs, ResultFile: r.path("3", "block", "init-debug.log")}
	for i, l := range labels {
		ref, parent := fmt.Sprint("sha256:", i), ""
		if i > 0 {
			parent = fmt.Sprint("sha256:", i-1)
		}
		r.pullLabels(ref, parent, l)
		id := fmt.Sprint(i + 1)
		blob := digest.Digest(l[snapshotter.LabelBlobDigest])
		told := blockapi.Blob{
			Digest: blob, Size: 4096, Target: digest.Digest(l[snapshotter.LabelTargetDigest]), SpecPath: r.path(id, "block", "config.v1.json"),
		}
		if got := <-heard; got != told {
			t.Errorf("the block daemon heard of %+v, want %+v", got, told)
		}
		want.Lowers = append(want.Lowers, spec.Lower{Dir: r.path(id, "fs"), Digest: blob, Size: 4096})
	}
	bottom, top := &want.Lowers[0], &want.Lowers[2]
	bottom.TargetDigest, bottom.TurboMeta, bottom.GzipIndex = target[0], choice, r.path("1", "fs", "gzip.meta")
	top.TargetDigest, top.TurboMeta = target[1], choice
	if d := cmp.Diff(want, r.spec("3")); d != "" {
		t.Errorf("spec (-want +got):\n%s", d)
	}
	r.dropSpecs("1", "2", "3")
	r.restart()
	r.pull("sha256:3", "sha256:2", digest.FromString("3"))
	if d := cmp.Diff(want.Lowers, r.spec("4").Lowers[:3]); d != "" {
		t.Errorf("spec written again (-want +got):\n%s", d)
	}
}

// TestTurboLabelsLost: containerd commits with labels of its own choice.
func TestTurboLabelsLost(t *testing.T) {
	need.Root(t)
	r := newRig(t, newFake(t))
	target := digest.FromString("target")
	mounts, err := r.Prepare(t.Context(), "k", "", snapshots.WithLabels(turboLabels("sha256:a", target, "")))
	if err != nil {
		t.Fatal(err)
	}
	r.writeFile(mounts, "ext4.fs.meta", zfileMagic)
	r.commit("sha256:a", "k")
	if err := os.RemoveAll(r.path("1", "block")); err != nil {
		t.Fatal(err)
	}
	r.pull("sha256:b", "sha256:a", digest.FromString("b"))
	if v := r.spec("2"); len(v.Lowers) != 2 || v.Lowers[0].TargetDigest != target {
		t.Errorf("got %+v", v)
	}
}

// TestTurboFileSystem: which of the metadata that a layer has are used.
func TestTurboFileSystem(t *testing.T) {
	need.Root(t)
	const ext4, erofs = "ext4.fs.meta", "erofs.fs.meta"
	both := files{ext4: zfileMagic, erofs: zfileMagic}
	for _, tc := range []struct {
		name       string
		order      []string
		onlyExt4   bool
		base, next files
		want       string // of both, or an error
	}{
		{"first choice", []string{"ext4", "erofs"}, false, both, both, ext4},
		{"second choice", []string{"ext4", "erofs"}, false, files{erofs: zfileMagic}, both, erofs},
		{"as below", []string{"ext4"}, false, files{ext4: zfileMagic}, files{erofs: zfileMagic}, "no metadata for ext4"},
		{"not as asked for", []string{"ext4"}, false, files{erofs: zfileMagic}, both, "no metadata for ext4"},
		{"operator's choice", []string{"erofs", "ext4"}, true, both, both, ext4},
		{"operator's choice is not there", []string{"erofs"}, true, files{erofs: zfileMagic}, both, "no metadata for ext4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.Contains(tc.want, erofs) {
				needErofs(t)
			}
			r := newRig(t, newFake(t), func(o *snapshotter.Options) { o.TurboFS = tc.order })
			if tc.onlyExt4 {
				if err := os.WriteFile(filepath.Join(r.opts.Root, ".TurboOCI_ext4"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := r.unpack("sha256:a", "", turboLabels("sha256:a", digest.FromString("a"), ""), tc.base)
			if err == nil {
				err = r.unpack("sha256:b", "sha256:a", turboLabels("sha256:b", digest.FromString("b"), ""), tc.next)
			}
			if err != nil {
				if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want %s", err, tc.want)
				}
				return
			}
			for _, l := range r.spec("2").Lowers {
				if filepath.Base(l.File) != tc.want {
					t.Errorf("got %s, want %s", l.File, tc.want)
				}
			}
		})
	}
}

// TestTurboHostile: layers that are not what their labels say. None may be
// committed, and nothing outside of them be touched.
func TestTurboHostile(t *testing.T) {
	need.Root(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(zfileMagic), 0o600); err != nil {
		t.Fatal(err)
	}
	target := digest.FromString("target")
	noRef := turboLabels("sha256:a", target, "")
	delete(noRef, snapshotter.LabelImageRef)
	badTarget := turboLabels("sha256:a", target, "")
	badTarget[snapshotter.LabelTargetDigest] = "sha256:../../etc"
	link := func(path string) error { return os.Symlink(secret, path) }
	huge := func(path string) error {
		return errors.Join(os.WriteFile(path, []byte(zfileMagic), 0o600), os.Truncate(path, 1<<40))
	}
	for _, tc := range []struct {
		name   string
		labels map[string]string
		all    files
		file   string // made by make
		make   func(path string) error
		want   string
	}{
		{"empty", turboLabels("sha256:a", target, ""), nil, "", nil, "no metadata"},
		{"other content", turboLabels("sha256:a", target, ""), files{"ext4.fs.meta": "not a layer, though long enough to be one"}, "", nil, "is no layer"},
		{"no index", turboLabels("sha256:a", target, "gzip"), files{"ext4.fs.meta": zfileMagic}, "", nil, "no index"},
		{"no zstd index", turboLabels("sha256:a", target, "zstd"), files{"ext4.fs.meta": zfileMagic}, "", nil, "no index"},
		{"index of what", turboLabels("sha256:a", target, ""), files{"ext4.fs.meta": zfileMagic, "gzip.meta": "x", "zstd.meta": "x"}, "", nil, "an index of a gzip and one of a zstd"},
		{"empty index", turboLabels("sha256:a", target, "gzip"), files{"ext4.fs.meta": zfileMagic, "gzip.meta": ""}, "", nil, "0 bytes"},
		{"linked metadata", turboLabels("sha256:a", target, ""), nil, "ext4.fs.meta", link, "symbolic link"},
		{"linked index", turboLabels("sha256:a", target, "gzip"), files{"ext4.fs.meta": zfileMagic}, "gzip.meta", link, "symbolic link"},
		{"pipe", turboLabels("sha256:a", target, ""), nil, "ext4.fs.meta", mkfifo, "not a regular file"},
		{"directory", turboLabels("sha256:a", target, ""), nil, "ext4.fs.meta", func(path string) error { return os.Mkdir(path, 0o700) }, "not a regular file"},
		{"huge metadata", turboLabels("sha256:a", target, ""), nil, "ext4.fs.meta", huge, "1099511627776 bytes"},
		{"huge index", turboLabels("sha256:a", target, ""), files{"ext4.fs.meta": zfileMagic}, "zstd.meta", huge, "1099511627776 bytes"},
		{"no reference", noRef, files{"ext4.fs.meta": zfileMagic}, "", nil, "pull the image with rpull"},
		{"bad target", badTarget, files{"ext4.fs.meta": zfileMagic}, "", nil, "not a sha256 digest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, newFake(t))
			mounts, err := r.Prepare(t.Context(), "k", "", snapshots.WithLabels(tc.labels))
			if err != nil {
				t.Fatal(err)
			}
			for name, text := range tc.all {
				r.writeFile(mounts, name, text)
			}
			if tc.make != nil {
				r.in(mounts, func(dir string) {
					if err := tc.make(filepath.Join(dir, tc.file)); err != nil {
						t.Fatal(err)
					}
				})
			}
			err = r.Commit(t.Context(), "sha256:a", "k", snapshots.WithLabels(tc.labels))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if _, err := r.Stat(t.Context(), "k"); err != nil {
				t.Errorf("the snapshot to try again with: %v", err)
			}
		})
	}
}

// dropSpecs removes what a power cut may take of snapshots.
func (r *rig) dropSpecs(ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		if err := os.RemoveAll(r.path(id, "block")); err != nil {
			r.t.Fatal(err)
		}
	}
}

// needErofs skips a test where the kernel cannot mount EROFS.
func needErofs(t *testing.T) {
	t.Helper()
	var err error
	if !blockmount.Supported("erofs") {
		err = errors.New("the kernel does not have it")
	}
	need.Capability(t, "erofs", err)
}
