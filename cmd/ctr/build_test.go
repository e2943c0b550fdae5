// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// disks is a snapshotter whose snapshots are directories under one parent,
// and whose committed layers all have the same sealed file.
type disks struct {
	snapshots.Snapshotter // nil: no other method is called
	dir, sealed           string
	calls                 []string
}

func (d *disks) Prepare(_ context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return nil, err
		}
	}
	d.calls = append(d.calls, fmt.Sprintf("prepare %s on %q %v", key, parent, info.Labels))
	root := filepath.Join(d.dir, key)
	return []mount.Mount{{Type: "bind", Source: root}}, os.MkdirAll(filepath.Join(root, "lost+found"), 0o700)
}

func (d *disks) Commit(_ context.Context, name, key string, _ ...snapshots.Opt) error {
	d.calls = append(d.calls, fmt.Sprintf("commit %s as %s", key, name))
	return nil
}

func (d *disks) Stat(_ context.Context, name string) (snapshots.Info, error) {
	return snapshots.Info{Name: name, Labels: map[string]string{labelSealed: d.sealed}}, nil
}

func newBuilder(t *testing.T) (*builder, *disks) {
	t.Helper()
	need.Root(t)
	_, golden := need.Golden(t, "rw/a.sealed")
	store, err := local.NewLabeledStore(t.TempDir(), noLabels{})
	if err != nil {
		t.Fatal(err)
	}
	d := &disks{dir: t.TempDir(), sealed: golden["rw/a.sealed"].Path}
	return &builder{id: "id", job: &job{content: store, snapshots: d, fsType: "ext4", vsizeGB: "7", out: io.Discard}}, d
}

// noLabels is a database that forgets.
type noLabels struct{}

func (noLabels) Get(digest.Digest) (map[string]string, error) { return nil, nil }
func (noLabels) Set(digest.Digest, map[string]string) error   { return nil }
func (noLabels) Update(_ digest.Digest, m map[string]string) (map[string]string, error) {
	return maps.Clone(m), nil
}

// addLayer stores a layer of one file.
func addLayer(t *testing.T, store content.Store, name string) convert.Layer {
	t.Helper()
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}), w.Close())
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(text.Bytes())
	l := convert.Layer{DiffID: d, ChainID: d, Source: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(text.Len())}, Count: 2}
	if err := content.WriteBlob(t.Context(), store, name, &text, l.Source); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestBuilder(t *testing.T) {
	b, d := newBuilder(t)
	l := addLayer(t, b.content, "file")
	var descs []ocispec.Descriptor
	for range 2 { // the same layer twice
		pack, err := b.apply(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		desc, err := pack(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		descs = append(descs, desc)
		l.Index++
	}
	labels := fmt.Sprint(map[string]string{labelWritable: "dir", labelVSize: "7", convert.AnnotationFSType: "ext4"})
	want := []string{
		`prepare id-0-active on "" ` + labels, "commit id-0-active as id-0",
		`prepare id-1-active on "id-0" ` + labels, "commit id-1-active as id-1",
	}
	if diff := cmp.Diff(want, d.calls); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "id-0-active", "file")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "id-0-active", "lost+found")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lost+found is part of the image: %v", err)
	}
	if diff := cmp.Diff(descs[0], descs[1]); diff != "" {
		t.Error(diff)
	}
	info, err := b.content.Info(t.Context(), descs[0].Digest)
	if err != nil || info.Size != descs[0].Size {
		t.Errorf("stored blob %+v, %v; want %+v", info, err, descs[0])
	}
}

func TestBuilderRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		harm func(b *builder, d *disks, l *convert.Layer)
		want string
	}{
		"other content":    {func(_ *builder, _ *disks, l *convert.Layer) { l.DiffID = digest.FromString("other") }, "diff ID"},
		"no block layer":   {func(_ *builder, d *disks, _ *convert.Layer) { d.sealed = "" }, "no block layer"},
		"layer that is no": {func(_ *builder, d *disks, _ *convert.Layer) { d.sealed = os.DevNull }, ""},
		"missing blob":     {func(_ *builder, _ *disks, l *convert.Layer) { l.Source.Digest = digest.FromString("none") }, "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			b, d := newBuilder(t)
			l := addLayer(t, b.content, "file")
			test.harm(b, d, &l)
			pack, err := b.apply(t.Context(), l)
			if err == nil {
				_, err = pack(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			uploads, err := b.content.ListStatuses(t.Context())
			if err != nil || len(uploads) != 0 {
				t.Errorf("left %v, %v", uploads, err)
			}
		})
	}
}
