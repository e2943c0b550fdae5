// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// layerSize is the size, in bytes, of the volume of layerBlob.
const layerSize = 8 << 20

// layerBlob returns layer i of an image as a registry has it. It holds n bytes
// that do not compress, and that are its own.
func layerBlob(t testing.TB, i, n int) []byte {
	t.Helper()
	var out, packed bytes.Buffer
	z, err := zfile.NewWriter(&packed, zfile.Options{})
	must(t, err)
	b, err := lsmt.Build(z, nil, lsmt.BuilderOptions{VirtualSize: layerSize, TempDir: t.TempDir()})
	must(t, err)
	content := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(content) // it never fails
	_, err = b.WriteAt(t.Context(), content, int64(i)*4096)
	must(t, err)
	must(t, b.Finish(t.Context()))
	must(t, b.Close())
	must(t, z.Close())
	_, err = io.Copy(&out, tarblob.Wrap(&packed, int64(packed.Len())))
	must(t, err)
	return out.Bytes()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stored puts an image of so many layers in reg.
func stored(t testing.TB, reg *fetchertest.Registry, layers, n int) *spec.Volume {
	t.Helper()
	v := &spec.Volume{}
	for i := range layers {
		ref := reg.AddBlob("some/image", layerBlob(t, i, n))
		v.RepoBlobURL = strings.TrimSuffix(ref.URL, "/"+ref.Digest.String())
		v.Lowers = append(v.Lowers, spec.Lower{Digest: ref.Digest, Size: ref.Size})
	}
	return v
}

// cached returns an Opener that keeps in dir what it gets of reg.
func cached(t testing.TB, reg *fetchertest.Registry, dir string) (o fetcher.Opener, shut func()) {
	t.Helper()
	c, err := cache.Open(cache.Options{Dir: dir, MinFree: -1})
	must(t, err)
	remote := registry.New(registry.Options{PlainHTTP: []string{reg.Host()}})
	return c.Opener(remote), func() {
		must(t, c.Close())
		must(t, remote.Close())
	}
}

// requests returns how often reg was asked for what.
func requests(reg *fetchertest.Registry) map[string]int {
	n := map[string]int{}
	for _, q := range reg.Log() {
		n[fmt.Sprint(q.Endpoint, " ", q.Status)]++
	}
	return n
}

// TestOneRequestPerLayer: to open a layer takes one range of it, and once it is
// open the same node opens it with none, even after a restart.
func TestOneRequestPerLayer(t *testing.T) {
	for _, tc := range []struct{ layers, bytes int }{{1, 512}, {1, 1 << 20}, {70, 600 << 10}} {
		t.Run(fmt.Sprintf("%d of %d bytes", tc.layers, tc.bytes), func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true})
			v := stored(t, reg, tc.layers, tc.bytes)
			dir := t.TempDir()
			openAndClose(t, v, reg, dir)
			got := requests(reg)
			if got["storage 206"] != tc.layers || got["origin 307"] != tc.layers || got["token 200"] != 1 {
				t.Errorf("requests %v, want a token, and a redirect and a range for each layer", got)
			}
			reg.ResetLog()
			reg.SetDown(true)
			openAndClose(t, v, reg, dir)
			if got := requests(reg); len(got) != 0 {
				t.Errorf("requests %v after a restart, want none", got)
			}
		})
	}
}

func openAndClose(t *testing.T, v *spec.Volume, reg *fetchertest.Registry, dir string) {
	t.Helper()
	blobs, shut := cached(t, reg, dir)
	defer shut()
	i, err := image.Open(t.Context(), v, blobs)
	must(t, err)
	must(t, i.Close())
}

// An openFunc opens blobs.
type openFunc func(fetcher.Ref) (fetcher.Blob, error)

func (f openFunc) Open(_ context.Context, ref fetcher.Ref) (fetcher.Blob, error) { return f(ref) }

// asked is a Blob that notes what it is asked for.
type asked struct {
	fetcher.Blob
	log *[][2]int64
}

func (a asked) Ask(_ context.Context, off, n int64) error {
	*a.log = append(*a.log, [2]int64{off, n})
	return nil
}

// TestHugeLayer: of a layer whose jump table may be long, the end is asked for,
// and then what lies before the table.
func TestHugeLayer(t *testing.T) {
	const hole = 600 << 20
	z := layerBlob(t, 1, 1<<20)[1536:]
	z = z[:bytes.LastIndex(z, []byte("ZFile\x00"))+512]
	trailer := z[len(z)-512:]
	index := binary.LittleEndian.Uint64(trailer[40:]) + hole
	binary.LittleEndian.PutUint64(trailer[40:], index)
	binary.LittleEndian.PutUint32(trailer[84:], hole) // as if for a dictionary
	clear(trailer[28:32])
	binary.LittleEndian.PutUint32(trailer[28:], ^crc32.Update(^uint32(0), crc32.MakeTable(crc32.Castagnoli), trailer))
	path := filepath.Join(t.TempDir(), "layer")
	f, err := os.Create(path)
	must(t, err)
	_, err = f.WriteAt(z[:512], 0)
	must(t, err)
	_, err = f.WriteAt(z[512:], 512+hole)
	must(t, err)
	must(t, f.Close())

	var log [][2]int64
	far := openFunc(func(fetcher.Ref) (fetcher.Blob, error) { return asked{openFile(t, path), &log}, nil })
	v := &spec.Volume{RepoBlobURL: "https://registry/v2/x/blobs", Lowers: []spec.Lower{{Digest: digest.FromString("x")}}}
	i, err := image.Open(t.Context(), v, far)
	must(t, err)
	defer i.Close()
	size := hole + int64(len(z))
	want := [][2]int64{{size - 256<<10, 256 << 10}, {size - 320<<10, 64 << 10}}
	for i := range int64(8) {
		want = append(want, [2]int64{int64(index) - (i+1)*256<<10, 256 << 10})
	}
	if !slices.Equal(log, want) {
		t.Errorf("asked for %v, want %v", log, want)
	}
	p := make([]byte, 4096)
	if _, err := i.ReadAt(t.Context(), p, 4096); err != nil || bytes.Count(p, []byte{0}) > 100 {
		t.Errorf("the content is not there, %v", err)
	}
}
