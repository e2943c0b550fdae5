// SPDX-License-Identifier: Apache-2.0

package download_test

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// TestContract holds Blobs in a registry, and downloaded ones, against the
// contract.
func TestContract(t *testing.T) {
	for _, local := range []bool{false, true} {
		fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob { return openLayer(t, content, local) })
	}
}

// A fileOpener opens one file, wherever a ref leads.
type fileOpener string

func (o fileOpener) Open(context.Context, fetcher.Ref) (fetcher.Blob, error) {
	return file.Open(string(o))
}

// openLayer opens a layer in a registry, or its file.
func openLayer(t testing.TB, content []byte, local bool) *download.Blob {
	t.Helper()
	dir := t.TempDir()
	dgst := digest.FromBytes(content)
	next := fetcher.Schemes{"file": file.Opener{}, "http": fileOpener(filepath.Join(dir, "registry"))}
	d := download.New(download.Options{Blobs: next, Logger: slog.New(slog.DiscardHandler), Off: true})
	t.Cleanup(func() { _ = d.Close() })
	lower := spec.Lower{Dir: dir, Digest: dgst, Size: int64(len(content))}
	ref := fetcher.Ref{URL: "http://registry/" + dgst.String(), Digest: dgst, Size: lower.Size}
	path := filepath.Join(dir, "registry")
	if local {
		path = commit(dir)
		ref = fetcher.Ref{URL: (&url.URL{Scheme: "file", Path: path}).String()}
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := d.Volume(&spec.Volume{RepoBlobURL: "http://registry", Lowers: []spec.Lower{lower}}, next).Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	blob, ok := b.(*download.Blob)
	if !ok {
		t.Fatalf("got a %T", b)
	}
	return blob
}

func TestReadsDoNotAllocate(t *testing.T) {
	b := openLayer(t, fetchertest.Content(1<<20, 1), true)
	defer b.Close()
	ctx, p := t.Context(), make([]byte, 4096)
	off := int64(0)
	if n := testing.AllocsPerRun(100, func() {
		off = (off + 12345) % (1<<20 - 4096)
		if _, err := b.ReadAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per read, want 0", n)
	}
}

// BenchmarkRead4K: what does it cost to be able to go over to another source?
func BenchmarkRead4K(b *testing.B) {
	content := fetchertest.Content(1<<20, 1)
	layer := openLayer(b, content, true)
	defer layer.Close()
	path := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	plain, err := file.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	for name, blob := range map[string]fetcher.Blob{"layer": layer, "file": plain} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			p, off := make([]byte, 4096), int64(0)
			for b.Loop() {
				off = (off + 12345) % (1<<20 - 4096)
				if _, err := blob.ReadAt(b.Context(), p, off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
