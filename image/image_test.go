// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// local opens file:// refs only.
var local = fetcher.Schemes{"file": file.Opener{}}

// volumeHash returns the hex SHA-256 of all bytes of v.
func volumeHash(t *testing.T, v backend.Volume) string {
	t.Helper()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < v.Size(); off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), v.Size()-off)]
		if _, err := v.ReadAt(t.Context(), buf, off); err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("read volume at %d: %v", off, err)
		}
		h.Write(buf)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestGoldenLayers opens every kind of wrapping the reference writes.
func TestGoldenLayers(t *testing.T) {
	_, files := need.Golden(t, "raw/*.lsmt", "zfile/*", "rw/a.commit*", "rw/a.sealed")
	if len(files) < 10 {
		t.Fatalf("only %d golden files", len(files))
	}
	for name, g := range files {
		t.Run(name, func(t *testing.T) {
			v := &spec.Volume{Lowers: []spec.Lower{{File: g.Path}}}
			i, err := image.Open(t.Context(), v, local)
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if got := volumeHash(t, i); got != g.Volume {
				t.Errorf("got volume %s, want %s", got, g.Volume)
			}
		})
	}
}

// TestGoldenStack reads two registry blobs as one disk, found in their
// snapshots' directories under the names the reference gives them.
func TestGoldenStack(t *testing.T) {
	dir, files := need.Golden(t, "stack/*")
	v := &spec.Volume{}
	for i, name := range []string{"overlaybd.commit", ".commit"} {
		sub := filepath.Join(dir, "snapshots", name)
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		blob := filepath.Join(dir, "stack", []string{"l0.obd", "l1.obd"}[i])
		if err := os.Rename(blob, filepath.Join(sub, name)); err != nil {
			t.Fatal(err)
		}
		v.Lowers = append(v.Lowers, spec.Lower{Dir: sub})
	}
	i, err := image.Open(t.Context(), v, local)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if got, want := volumeHash(t, i), files["stack/l1.obd"].Volume; got != want {
		t.Errorf("got volume %s, want %s", got, want)
	}
}

func TestOpenErrorsNameTheLayer(t *testing.T) {
	dir, files := need.Golden(t, "zfile/l0.lz4.4")
	good := files["zfile/l0.lz4.4"].Path
	short := filepath.Join(dir, "short")
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(short, content[:len(content)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("not a layer "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	dgst := digest.FromString("x")
	for _, tc := range []struct {
		name  string
		lower spec.Lower
		want  string
	}{
		{"missing", spec.Lower{File: dir + "/nowhere"}, "nowhere"},
		{"empty directory", spec.Lower{Dir: dir + "/nowhere"}, "overlaybd.commit"},
		{"truncated", spec.Lower{File: short}, short},
		{"some other file", spec.Lower{File: text}, text},
		{"no such scheme", spec.Lower{Digest: dgst, RepoBlobURL: "gopher://x"}, "gopher"},
		{"target without a place", spec.Lower{File: good, TargetDigest: dgst}, "target " + dgst.String()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := &spec.Volume{Lowers: []spec.Lower{{File: good}, tc.lower}}
			i, err := image.Open(t.Context(), v, local)
			if i != nil || err == nil {
				t.Fatalf("got %v, %v; want an error", i, err)
			}
			for _, want := range []string{"lowers[1]", tc.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %s", err, want)
				}
			}
		})
	}
}

// TestCorruptHeaderIsFetchedAgain: a damaged cached copy of a layer's first
// or last bytes must not look like "no layer".
func TestCorruptHeaderIsFetchedAgain(t *testing.T) {
	_, files := need.Golden(t, "zfile/l0.lz4.4.tar")
	places := []int64{257, 1536, 1536 + 30} // tar magic, zfile magic, zfile header
	for back := int64(1); back < 5000; back += 7 {
		places = append(places, openFile(t, files["zfile/l0.lz4.4.tar"].Path).Size()-back)
	}
	for _, at := range places {
		b := &damaged{Blob: openFile(t, files["zfile/l0.lz4.4.tar"].Path), at: at}
		l, err := image.OpenLayer(t.Context(), b, "layer x")
		if err != nil {
			t.Fatalf("damage at %d: %v", at, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// headless is a Blob whose beginning nobody may read.
type headless struct{ fetcher.Blob }

func (h headless) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 4096 {
		return 0, errors.New("read of the beginning")
	}
	return h.Blob.ReadAt(ctx, p, off)
}

// TestGoldenFromTheEnd: nothing that the reference compresses has to be read at
// both ends.
func TestGoldenFromTheEnd(t *testing.T) {
	_, files := need.Golden(t, "zfile/*", "stack/*", "rw/a.commit.z.tar")
	for name, g := range files {
		l, err := image.OpenLayer(t.Context(), headless{openFile(t, g.Path)}, name)
		if err != nil {
			t.Error(err)
			continue
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// damaged is a cached Blob whose copy of one byte is wrong until it is dropped.
type damaged struct {
	fetcher.Blob
	at      int64
	dropped bool
}

func (d *damaged) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := d.Blob.ReadAt(ctx, p, off)
	if i := d.at - off; !d.dropped && i >= 0 && i < int64(n) {
		p[i] ^= 0xff
	}
	return n, err
}

func (d *damaged) Drop(_ context.Context, off, n int64) error {
	d.dropped = d.dropped || off <= d.at && d.at < off+n
	return nil
}

func openFile(t *testing.T, path string) fetcher.Blob {
	t.Helper()
	b, err := file.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
