// SPDX-License-Identifier: Apache-2.0

package build_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
)

// TestIndex: a compressed layer is the target by the index that was made as it
// was unpacked.
func TestIndex(t *testing.T) {
	p := plain(t, members(t, file("a", noise(5<<20)), dir("d"), file("d/b", noise(7000))))
	want := map[string]string{"a": noise(5 << 20), "d/b": noise(7000)}
	half := len(p) / 2
	gz := func(ctx context.Context, src fetcher.Blob, index []byte) (fetcher.Blob, error) {
		return gzidx.Open(ctx, src, bytes.NewReader(index), int64(len(index)))
	}
	zst := func(ctx context.Context, src fetcher.Blob, index []byte) (fetcher.Blob, error) {
		return zstdidx.Open(ctx, src, bytes.NewReader(index), int64(len(index)))
	}
	for name, c := range map[string]struct {
		stream []byte
		kind   build.Kind
		open   func(ctx context.Context, src fetcher.Blob, index []byte) (fetcher.Blob, error)
	}{
		"plain": {p, build.Plain, func(_ context.Context, src fetcher.Blob, index []byte) (fetcher.Blob, error) {
			if len(index) > 0 {
				t.Errorf("what is not compressed has an index of %d bytes", len(index))
			}
			return src, nil
		}},
		"gzip":        {gzipped(t, p), build.Gzip, gz},
		"members":     {append(gzipped(t, p[:half]), gzipped(t, p[half:])...), build.Gzip, gz},
		"zstd":        {zstandard(t, p), build.Zstd, zst},
		"zstd frames": {append(zstandard(t, p[:half]), zstandard(t, p[half:])...), build.Zstd, zst},
	} {
		t.Run(name, func(t *testing.T) {
			sealed, stream := filepath.Join(t.TempDir(), "sealed"), filepath.Join(t.TempDir(), "stream")
			var layer, index bytes.Buffer
			chain := chainOf(t, build.Options{VirtualSize: 64 << 20, Target: true})
			kind, err := chain.BuildTarget(t.Context(), &layer, bytes.NewReader(c.stream), build.Layer{DiffID: diffID(t, blob(p)), Index: &index})
			if kind != c.kind || err != nil {
				t.Fatalf("kind %q, %v", kind, err)
			}
			write(t, sealed, layer.Bytes())
			write(t, stream, c.stream)
			target, err := c.open(t.Context(), blobOf(t, stream), index.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			l, err := lsmt.OpenWithTarget(t.Context(), blobOf(t, sealed), target)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, contents(t, merge(t, []*lsmt.Layer{l}))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func write(t testing.TB, name string, p []byte) {
	t.Helper()
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestIndexOfDamagedLayer: a stream that is cut short or changed has no index.
func TestIndexOfDamagedLayer(t *testing.T) {
	p := plain(t, members(t, file("a", noise(300_000))))
	for name, c := range map[string][]byte{"gzip": gzipped(t, p), "zstd": zstandard(t, p)} {
		flipped := bytes.Clone(c)
		flipped[len(c)/2] ^= 1
		for _, stream := range [][]byte{flipped, c[:len(c)-5], c[:100]} {
			var index bytes.Buffer
			l := build.Layer{DiffID: diffID(t, blob(p)), Index: &index}
			if err := newChain(t, 64<<20).Build(t.Context(), io.Discard, bytes.NewReader(stream), l); err == nil || index.Len() > 0 {
				t.Errorf("%s: error %v, and an index of %d bytes", name, err, index.Len())
			}
		}
	}
}

// TestKind: a layer's compression is told.
func TestKind(t *testing.T) {
	p := plain(t, members(t, file("a", "x")))
	for kind, c := range map[build.Kind][]byte{build.Plain: p, build.Gzip: gzipped(t, p), build.Zstd: zstandard(t, p)} {
		c := blob(c)
		got, err := newChain(t, 64<<20).BuildTarget(t.Context(), io.Discard, c(t), build.Layer{DiffID: diffID(t, c)})
		if got != kind || err != nil {
			t.Errorf("kind %q, %v, want %q", got, err, kind)
		}
	}
}

func TestUnknownFSType(t *testing.T) {
	l := members(t)
	err := refused(t.Context(), chainOf(t, build.Options{FSType: "xfs"}), l(t), diffID(t, l))
	if err == nil || !strings.Contains(err.Error(), `"xfs"`) {
		t.Errorf("error %v", err)
	}
}
