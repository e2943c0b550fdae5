// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// pushPacked is pushTurbo with the metadata in the registry too. They are to be
// unpacked into dir.
func (n *node) pushPacked(dir string) (v *spec.Volume, content []byte) {
	n.t.Helper()
	files := n.t.TempDir()
	v, content = n.pushTurbo(files)
	var blob bytes.Buffer
	z := gzip.NewWriter(&blob)
	w := tar.NewWriter(z)
	for _, name := range []string{"ext4.fs.meta", "gzip.meta"} {
		text, err := os.ReadFile(filepath.Join(files, name))
		if err != nil {
			n.t.Fatal(err)
		}
		err = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text))})
		if _, e := w.Write(text); err != nil || e != nil {
			n.t.Fatal(err, e)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		n.t.Fatal(err)
	}
	ref := n.registry.AddBlob("test/image", blob.Bytes())
	v.Lowers[1] = spec.Lower{
		Dir: dir, Digest: ref.Digest, Size: ref.Size, TargetDigest: v.Lowers[1].TargetDigest, TurboMeta: []string{"erofs.fs.meta", "ext4.fs.meta"},
	}
	return v, content
}

// requests returns how often the blob of v's TurboOCI layer was sent.
func (n *node) requests(v *spec.Volume) (count int) {
	for _, q := range n.registry.Log() {
		if q.Endpoint == fetchertest.Storage && strings.Contains(q.Path, v.Lowers[1].Digest.String()) {
			count++
		}
	}
	return count
}

// TestPackedExpected: metadata that were expected are there when the device is
// attached, the target has been found, and all is kept: the next daemon asks for
// nothing.
func TestPackedExpected(t *testing.T) {
	o := farAway()
	o.cache.Dir = t.TempDir()
	dir := t.TempDir()
	var v *spec.Volume
	var content []byte
	t.Run("first", func(t *testing.T) {
		n := newNodeOf(t, o)
		v, content = n.pushPacked(dir)
		n.registry.ResetLog()
		l := v.Lowers[1]
		if err := n.Expect(t.Context(), v.RepoBlobURL, blockapi.Blob{Digest: l.Digest, Size: l.Size, Target: l.TargetDigest}); err != nil {
			t.Fatal(err)
		}
		if err := n.registry.Await(t.Context(), fetchertest.Storage, 2); err != nil { // both blobs
			t.Fatal(err)
		}
		a := n.attach("1", n.save("1", v))
		if got := n.requests(v); got != 1 {
			t.Errorf("the metadata were asked for %d times, want once", got)
		}
		n.registry.ResetLog()
		wantRead(t, a.Path, content)
		for _, q := range n.asked(v) {
			if q.Endpoint == fetchertest.Origin {
				t.Errorf("a read of the target asked the registry where that is: %+v", q)
			}
		}
		wantTurbo(t, a.Path, content)
	})
	t.Run("second", func(t *testing.T) {
		n := newNodeOf(t, o) // the registry of the first is gone
		wantTurbo(t, n.attach("1", n.save("1", v)).Path, content)
	})
}

// TestPackedUnpacked: metadata are unpacked as soon as it is known where to.
func TestPackedUnpacked(t *testing.T) {
	n := newNodeOf(t, farAway())
	dir := t.TempDir()
	v, content := n.pushPacked(dir)
	path, l := n.save("1", v), v.Lowers[1]
	blob := blockapi.Blob{Digest: l.Digest, Size: l.Size, Target: l.TargetDigest, SpecPath: path}
	for range 2 { // rpull and the snapshotter both say so
		if err := n.Expect(t.Context(), v.RepoBlobURL, blob); err != nil {
			t.Fatal(err)
		}
	}
	for {
		if files, err := os.ReadDir(dir); err != nil || t.Context().Err() != nil {
			t.Fatal(err, t.Context().Err())
		} else if len(files) == 2 && files[0].Name() == "ext4.fs.meta" && files[1].Name() == "gzip.meta" {
			break
		}
		time.Sleep(time.Millisecond)
	}
	n.registry.ResetLog()
	a := n.attach("1", path)
	if got := n.requests(v); got != 0 {
		t.Errorf("the metadata were asked for %d times after they were unpacked", got)
	}
	wantTurbo(t, a.Path, content)
}

// TestPackedFaults: what passes, Attach does not notice; what lasts is its
// error, which names the metadata, and when it is over Attach succeeds.
func TestPackedFaults(t *testing.T) {
	for _, tc := range []fault{
		{"404", fetchertest.Fault{Status: 404}, true},
		{"503", fetchertest.Fault{Status: 503}, true},
		{"once 503", fetchertest.Fault{Status: 503, Times: 1}, false},
		{"cut body", fetchertest.Fault{Body: fetchertest.Cut}, true},
		{"once cut", fetchertest.Fault{Body: fetchertest.Cut, Times: 1}, false},
		{"other bytes", fetchertest.Fault{Body: fetchertest.Corrupt, After: 100}, true},
		{"once other bytes", fetchertest.Fault{Body: fetchertest.Corrupt, After: 100, Times: 1}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := newNodeOf(t, quick(300*time.Millisecond))
			dir := t.TempDir()
			v, content := n.pushPacked(dir)
			if tc.lasts {
				tc.fault.Times = -1
			}
			path := n.save("1", v)
			n.registry.Fault(tc.fault)
			_, err := n.Attach(t.Context(), "1", path)
			if tc.lasts && (err == nil || !strings.Contains(err.Error(), v.Lowers[1].Digest.String())) || !tc.lasts && err != nil {
				t.Errorf("Attach: %v", err)
			}
			n.registry.ClearFaults()
			wantTurbo(t, n.attach("1", path).Path, content)
			if files, err := os.ReadDir(dir); err != nil || len(files) != 2 {
				t.Errorf("its directory has %v, %v", files, err)
			}
		})
	}
}
