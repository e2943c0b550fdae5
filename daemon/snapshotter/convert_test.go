// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A fakeConverter makes files of the right names, and notes what it was asked.
type fakeConverter struct {
	asked []snapshotter.Conversion
	index string // the name of the index, if there is to be one

	// hook, if set, is called when the files are there, and may fail.
	hook func(dir string) error
}

func (f *fakeConverter) Convert(_ context.Context, c snapshotter.Conversion) error {
	f.asked = append(f.asked, c)
	err := os.WriteFile(filepath.Join(c.Dir, "overlaybd.commit"), []byte(zfileMagic), 0o600)
	if f.index != "" {
		err = errors.Join(err, os.WriteFile(filepath.Join(c.Dir, f.index), []byte("index"), 0o600))
	}
	if f.hook != nil {
		err = errors.Join(err, f.hook(c.Dir))
	}
	return err
}

// A shop is a content store with layers.
type shop struct {
	content.Store

	t testing.TB
}

func newShop(t testing.TB) *shop {
	t.Helper()
	s, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &shop{s, t}
}

// add stores blob as a layer.
func (s *shop) add(blob []byte) ocispec.Descriptor {
	s.t.Helper()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(s.t.Context(), s, desc.Digest.String(), bytes.NewReader(blob), desc); err != nil && !errdefs.IsAlreadyExists(err) {
		s.t.Fatal(err)
	}
	return desc
}

func gzipped(t testing.TB, parts ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	for _, p := range parts { // each a member of its own
		z := gzip.NewWriter(&buf)
		if _, err := z.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func zstded(t testing.TB, text string) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll([]byte(text), nil)
}

// convertLabels ask for a layer to be converted.
func convertLabels(ref string) map[string]string {
	return map[string]string{
		snapshots.LabelSnapshotRef: ref, snapshotter.LabelConvert: "yes", snapshotter.LabelImageRef: testRepo + ":latest",
	}
}

// convert pulls a layer as containerd does, which is to be converted.
func (r *rig) convert(s *shop, ref, parent string, layer ocispec.Descriptor) error {
	labels := snapshots.WithLabels(convertLabels(ref))
	key := "extract-" + ref
	mounts, err := r.Prepare(r.t.Context(), key, parent, labels)
	if err != nil {
		return err
	}
	if _, err := r.Applier(s).Apply(r.t.Context(), layer, mounts); err != nil {
		return err
	}
	return r.Commit(r.t.Context(), ref, key, labels)
}

func converting(c *fakeConverter) func(*snapshotter.Options) {
	return func(o *snapshotter.Options) { o.Converter = c }
}

// TestConvert has layers of each compression converted, over one another and
// over a remote one, and their specs lost.
func TestConvert(t *testing.T) {
	need.Root(t)
	c, s := &fakeConverter{}, newShop(t)
	r := newRig(t, newFake(t), converting(c))
	native := digest.FromString("native")
	r.pull("sha256:0", "", native)
	want := []spec.Lower{{Digest: native, Size: 4096, Dir: r.path("1", "fs")}}
	parent := "sha256:0"
	for i, tc := range []struct {
		blob  []byte
		index string
	}{
		{[]byte("plain"), ""},
		{gzipped(t, "one member", "and another"), "gzip.meta"},
		{zstded(t, "zstandard"), "zstd.meta"},
	} {
		id := string(rune('2' + i))
		ref := "sha256:" + id
		c.index = tc.index
		if err := r.convert(s, ref, parent, s.add(tc.blob)); err != nil {
			t.Fatal(err)
		}
		r.wantRead(r.path(id, "layer.tar"), string(tc.blob))
		if _, err := os.Lstat(r.path(id, "temp")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what is left of the conversion: %v", err)
		}
		below, parentID := want, string(rune('1'+i))
		if d := cmp.Diff(&spec.Volume{Lowers: below, RepoBlobURL: testBlobs, ResultFile: r.path(parentID, "block", "init-debug.log")}, c.asked[i].Below); d != "" {
			t.Errorf("layer %s was converted on (-want +got):\n%s", id, d)
		}
		l := spec.Lower{File: r.path(id, "fs", "overlaybd.commit"), TargetFile: r.path(id, "layer.tar")}
		if tc.index != "" {
			l.GzipIndex = r.path(id, "fs", tc.index)
		}
		want = append(want, l)
		parent = ref
	}
	if got, want := c.asked[1].DiffID, digest.FromString("one memberand another"); got != want || c.asked[1].FSType != "ext4" {
		t.Errorf("asked for %+v, want diff ID %s", c.asked[1], want)
	}
	if d := cmp.Diff(want, r.spec("4").Lowers); d != "" {
		t.Errorf("lowers (-want +got):\n%s", d)
	}
	r.dropSpecs("1", "2", "3", "4")
	r.pull("sha256:5", "sha256:4", native)
	if d := cmp.Diff(want, r.spec("5").Lowers[:4]); d != "" {
		t.Errorf("lowers written again (-want +got):\n%s", d)
	}
	big := s.add(bytes.Repeat([]byte{1}, 1<<20))
	c.index = ""
	if err := r.convert(s, "sha256:6", "sha256:5", big); err != nil {
		t.Fatal(err)
	}
	if u, err := r.Usage(t.Context(), "sha256:6"); err != nil || u.Size < 1<<20 {
		t.Errorf("usage with a layer of 1 MiB: %+v, %v", u, err)
	}
}

// TestConvertCutShort ends a conversion at each step: it is done again.
func TestConvertCutShort(t *testing.T) {
	need.Root(t)
	for name, spoil := range map[string]func(r *rig, dir string) error{
		"before it": func(*rig, string) error { return errCrash },
		"with half of it": func(_ *rig, dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "overlaybd.commit")), errCrash)
		},
		"with the index in place": func(r *rig, dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "gzip.meta"), r.path("1", "fs", "gzip.meta")), errCrash)
		},
		"with both in place": func(r *rig, dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "gzip.meta"), r.path("1", "fs", "gzip.meta")),
				os.Rename(filepath.Join(dir, "overlaybd.commit"), r.path("1", "fs", "overlaybd.commit")), errCrash)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := &fakeConverter{index: "gzip.meta"}, newShop(t)
			r := newRig(t, newFake(t), converting(c))
			c.hook = func(dir string) error { return spoil(r, dir) }
			if err := r.convert(s, "sha256:a", "", s.add(gzipped(t, "layer"))); !errors.Is(err, errCrash) {
				t.Fatalf("got %v, want a crash", err)
			}
			// As if it had not been cleared away.
			if err := errors.Join(os.MkdirAll(r.path("1", "temp"), 0o700), os.WriteFile(r.path("1", "temp", "half"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			r.restart()
			c.hook = nil
			if err := r.Commit(t.Context(), "sha256:a", "extract-sha256:a", snapshots.WithLabels(convertLabels("sha256:a"))); err != nil {
				t.Fatal(err)
			}
			want := []spec.Lower{{File: r.path("1", "fs", "overlaybd.commit"), TargetFile: r.path("1", "layer.tar"), GzipIndex: r.path("1", "fs", "gzip.meta")}}
			if d := cmp.Diff(want, r.spec("1").Lowers); d != "" {
				t.Errorf("lowers (-want +got):\n%s", d)
			}
		})
	}
}

// TestConvertCannot: where a layer cannot be converted it is unpacked, if that
// can be told before, and not committed otherwise.
func TestConvertCannot(t *testing.T) {
	need.Root(t)
	s := newShop(t)
	layer := s.add([]byte("layer"))
	r := newRig(t, newFake(t))
	labels := snapshots.WithLabels(convertLabels("sha256:a"))
	mounts, err := r.Prepare(t.Context(), "k", "", labels)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Applier(s).Apply(t.Context(), layer, mounts); !errdefs.IsNotImplemented(err) {
		t.Errorf("without a converter: got %v, want it left to the next differ", err)
	}
	if err := r.Commit(t.Context(), "plain", "k", labels); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.path("1", "block")); err == nil {
		t.Error("without a converter the layer became a block layer")
	}

	r.opts.Converter = &fakeConverter{}
	r.restart()
	mounts, err = r.Prepare(t.Context(), "k", "plain", labels)
	if err != nil || mounts[0].Type != "overlay" {
		t.Errorf("over an unpacked layer: got %v, %v", mounts, err)
	}
	if _, err := r.Applier(s).Apply(t.Context(), layer, mounts); !errdefs.IsNotImplemented(err) {
		t.Errorf("over an unpacked layer: got %v, want it left to the next differ", err)
	}
	mounts, err = r.Prepare(t.Context(), "bottom", "", labels)
	if err != nil {
		t.Fatal(err)
	}
	r.writeFile(mounts, "file", "unpacked by another differ")
	err = r.Commit(t.Context(), "bottom-1", "bottom", labels)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "differ") {
		t.Errorf("an unpacked layer was committed: %v", err)
	}
}

// TestApplierLeaves: what is not the snapshot of a layer to be converted is
// the next differ's.
func TestApplierLeaves(t *testing.T) {
	need.Root(t)
	s := newShop(t)
	r := newRig(t, newFake(t), converting(&fakeConverter{}))
	layer := s.add([]byte("layer"))
	plain := r.prepare("plain", "")
	turbo, err := r.Prepare(t.Context(), "turbo", "", snapshots.WithLabels(turboLabels("sha256:t", layer.Digest, "")))
	if err != nil {
		t.Fatal(err)
	}
	own, err := r.Prepare(t.Context(), "own", "", snapshots.WithLabels(convertLabels("sha256:c")))
	if err != nil {
		t.Fatal(err)
	}
	bind := func(source string) []mount.Mount { return []mount.Mount{{Type: "bind", Source: source}} }
	for name, mounts := range map[string][]mount.Mount{
		"plain":           plain,
		"TurboOCI":        turbo,
		"none":            nil,
		"two":             append(own, own...),
		"outside":         bind(t.TempDir()),
		"no snapshot":     bind(r.path("99", "fs")),
		"another's":       bind(filepath.Join(t.TempDir(), "snapshots", "3", "fs")),
		"other directory": bind(r.path("3", "work")),
		"climbing":        bind(r.path("3") + "/../3/fs"),
	} {
		if _, err := r.Applier(s).Apply(t.Context(), layer, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: got %v, want it left to the next differ", name, err)
		}
	}
	if _, err := r.Applier(s).Apply(t.Context(), layer, own); err != nil {
		t.Errorf("its own: %v", err)
	}
}

// TestApplierRefuses: a layer that is not what it is called is not stored, nor
// anything of it.
func TestApplierRefuses(t *testing.T) {
	need.Root(t)
	s := newShop(t)
	r := newRig(t, newFake(t), converting(&fakeConverter{}))
	mounts, err := r.Prepare(t.Context(), "k", "", snapshots.WithLabels(convertLabels("sha256:c")))
	if err != nil {
		t.Fatal(err)
	}
	whole := gzipped(t, strings.Repeat("layer", 1000))
	good := s.add(whole)
	encrypted := good
	encrypted.MediaType += "+encrypted"
	bad := good
	bad.Digest = "sha256:../../x"
	for name, desc := range map[string]ocispec.Descriptor{
		"cut":       s.add(whole[:len(whole)-10]),
		"damaged":   s.add(append(bytes.Clone(whole[:50]), bytes.Repeat([]byte{0xff}, 50)...)),
		"behind it": s.add(append(bytes.Clone(whole), "and more"...)),
		"encrypted": encrypted,
		"missing":   {Digest: digest.FromString("missing"), Size: 5},
		"digest":    bad,
	} {
		if _, err := r.Applier(s).Apply(t.Context(), desc, mounts); err == nil || errdefs.IsNotImplemented(err) {
			t.Errorf("%s: got %v, want an error", name, err)
		}
		entries, err := os.ReadDir(r.path("1"))
		if err != nil || len(entries) != 3 { // fs, work, image_ref
			t.Errorf("%s: left %v, %v", name, entries, err)
		}
	}
	liar := lyingStore{s, whole}
	if _, err := r.Applier(liar).Apply(t.Context(), s.add([]byte("layer")), mounts); err == nil || !strings.Contains(err.Error(), "its content is") {
		t.Errorf("other content than the digest says: %v", err)
	}
	applied, err := r.Applier(s).Apply(t.Context(), good, mounts)
	if err != nil || applied.Digest != digest.FromString(strings.Repeat("layer", 1000)) || applied.Size != 5000 || applied.MediaType != ocispec.MediaTypeImageLayer {
		t.Errorf("a good one: %+v, %v", applied, err)
	}
}

// A lyingStore returns the same content for everything.
type lyingStore struct {
	content.Provider

	blob []byte
}

func (l lyingStore) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return readerAt{bytes.NewReader(l.blob)}, nil
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }
