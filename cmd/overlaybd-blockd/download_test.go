// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/zfile"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestDownloadSurvivesKills kills the daemon at every step of a download. What
// it leaves is the whole layer or nothing, and in the end the next daemon needs
// no network.
func TestDownloadSurvivesKills(t *testing.T) {
	need.Root(t)
	need.FUSE(t)
	m := newMachine(t, "fuse")
	r := fetchertest.NewRegistry(t, fetchertest.Options{BytesPerSecond: 8 << 20})
	m.cfg.Registry.PlainHTTP = []string{r.Host()}
	m.cfg.Download = conf.Download{Enable: true, Tries: 1, Parallel: 1, ExtentSize: 64 << 10}
	m.configure("fuse")
	m.start()

	content := fetchertest.Content(1<<20, 1)
	blob := m.layerOf(content)
	ref := r.AddBlob("test/image", blob)
	dir := t.TempDir()
	path := m.save("image", &spec.Volume{
		RepoBlobURL: strings.TrimSuffix(ref.URL, "/"+ref.Digest.String()),
		Lowers:      []spec.Lower{{Dir: dir, Digest: ref.Digest, Size: ref.Size}},
	})
	complete := 0
	for after := time.Duration(0); complete < 5; after += 10 * time.Millisecond {
		m.attach("1", path)
		<-time.After(after)
		m.kill()
		if wantWholeOrNothing(t, dir, blob) {
			complete++
			if err := os.Remove(filepath.Join(dir, "overlaybd.commit")); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.RemoveAll(m.cfg.Cache.Dir); err != nil { // all is to be fetched
			t.Fatal(err)
		}
		m.start()
	}

	for a := m.attach("1", path); a.LocalBytes < a.LayerBytes; a = m.await("1", blockapi.Serving) {
		<-time.After(time.Millisecond)
	}
	m.kill()
	if !wantWholeOrNothing(t, dir, blob) {
		t.Error("the layer is gone")
	}
	r.ResetLog()
	m.start()
	got, err := readFile(m.attach("1", path).Path, len(content))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("the device reads wrong bytes, %v", err)
	}
	if log := r.Log(); len(log) > 0 {
		t.Errorf("the registry was asked: %+v", log)
	}
	m.detach("1")
	m.wantNothing()
}

// wantWholeOrNothing reports whether the layer is in dir.
func wantWholeOrNothing(t *testing.T, dir string, blob []byte) bool {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	hidden, herr := filepath.Glob(filepath.Join(dir, ".*"))
	if err := errors.Join(err, herr); err != nil {
		t.Fatal(err)
	}
	if len(names)+len(hidden) == 0 {
		return false
	}
	got, err := os.ReadFile(filepath.Join(dir, "overlaybd.commit"))
	if err != nil || !bytes.Equal(got, blob) || len(names)+len(hidden) > 1 {
		t.Fatalf("left behind: %v %v, or not the layer, %v", names, hidden, err)
	}
	return true
}

// layerOf makes a compressed layer that begins with content.
func (m *machine) layerOf(content []byte) []byte {
	m.t.Helper()
	up := spec.Upper{Data: m.file("data"), Index: m.file("index"), VSizeGB: 1}
	build := m.save("build", &spec.Volume{Upper: up})
	f, err := os.OpenFile(m.attach("build", build).Path, os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		m.t.Fatal(err)
	}
	m.detach("build")
	sealed := m.file("sealed")
	if err := m.api.Seal(m.t.Context(), build, sealed); err != nil {
		m.t.Fatal(err)
	}
	layer, err := os.ReadFile(sealed)
	if err != nil {
		m.t.Fatal(err)
	}
	var blob bytes.Buffer
	w, err := zfile.NewWriter(&blob, zfile.Options{})
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = w.Write(layer)
	if err := errors.Join(err, w.Close()); err != nil {
		m.t.Fatal(err)
	}
	return blob.Bytes()
}

func readFile(path string, n int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0) // past the page cache
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	_, err = f.ReadAt(p, 0)
	return p, errors.Join(err, f.Close())
}
